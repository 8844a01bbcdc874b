// SPDX-License-Identifier: GPL-2.0

//! What a device lies on, and who else has what it lies on.

use std::{
    fs,
    os::unix::fs::{
        FileTypeExt,
        MetadataExt, //
    },
};

use devicemapper::Device;

use thin_metadata::format::SECTOR_SIZE;

use crate::{
    backing,
    dm::{
        Dm,
        Line, //
    },
    error::{
        Error,
        Result, //
    },
    pool::ThinWords,
};

/// A thin volume that a device is, has a part of, or lies on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Thin {
    /// The name of the device that is the volume, or a part of which is.
    pub device: String,
    /// The number of its pool's device.
    pub pool: Device,
    /// Its id in the pool.
    pub id: u32,
    /// How much of it is seen there, in bytes.
    pub size: u64,
}

/// The thin volumes that writing to a device can write to. An error if it is a pool, or lies on one without being a volume
/// of it: a pool's blocks are those of all volumes.
pub fn thins(dm: &Dm, device: Device) -> Result<Vec<Thin>> {
    let mut found = Vec::new();
    let mut seen = Vec::new();
    let mut left = vec![device];
    while let Some(device) = left.pop() {
        if seen.contains(&device) {
            continue;
        }
        seen.push(device);
        let Some(name) = dm.name(device)? else {
            left.extend(backing::below(device)?);
            continue;
        };
        let table = dm.table(&name)?;
        if table.iter().any(|line| line.target == "thin-pool") {
            return Err(Error::Refused(format!(
                "it is pool {name}, or lies on it, and is not a volume of it"
            )));
        }
        let mut below = dm.below(&name)?;
        for line in &table {
            let Some(params) = params(&name, line)? else {
                continue;
            };
            found.push(Thin {
                device: name.clone(),
                pool: params.pool,
                id: params.id,
                size: line.sectors.saturating_mul(SECTOR_SIZE),
            });
            // Nothing is written to an origin, and to a pool only as to a volume of it.
            below.retain(|&device| {
                (device != params.pool && Some(device) != params.origin) || is_named(&table, device)
            });
        }
        left.extend(below);
    }
    Ok(found)
}

/// The name of another device that is the same volume, or has a part of it.
pub fn alias(dm: &Dm, thin: &Thin) -> Result<Option<String>> {
    for (name, _) in dm.list()? {
        if name == thin.device {
            continue;
        }
        let table = match dm.table(&name) {
            Ok(table) => table,
            // Devices come and go.
            Err(_) if dm.info(&name)?.is_none() => continue,
            Err(e) => return Err(e),
        };
        for line in table.iter().filter(|line| tells(line)) {
            let params = params(&name, line)?;
            if params.is_some_and(|other| other.pool == thin.pool && other.id == thin.id) {
                return Ok(Some(name));
            }
        }
    }
    Ok(None)
}

/// The loop device that a device is used through, as a whole or in part. Nobody who opens the device exclusively is told of
/// that.
pub fn loop_device(device: Device) -> Result<Option<String>> {
    const FOLDER: &str = "/sys/block";
    let whole = backing::disk_of(device);
    for entry in fs::read_dir(FOLDER).map_err(Error::io(FOLDER))? {
        let entry = entry.map_err(Error::io(FOLDER))?;
        let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) else {
            continue;
        };
        // Of a file that has no name any more nothing is known.
        let Ok(metadata) = fs::metadata(file.trim_end_matches('\n')) else {
            continue;
        };
        if !metadata.file_type().is_block_device() {
            continue;
        }
        let backing = Device::from(metadata.rdev());
        let disk = backing::disk_of(backing);
        if backing == device || disk == Some(device) || whole == Some(backing) {
            return Ok(Some(entry.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Whether a line of a volume tells what it is: those of a pool that has failed do not.
fn tells(line: &Line) -> bool {
    !matches!(line.words.as_str(), "Fail" | "-")
}

/// The parameters of a volume; `None` if a line is of another target.
fn params(name: &str, line: &Line) -> Result<Option<ThinWords>> {
    if line.target != "thin" {
        return Ok(None);
    }
    if !tells(line) {
        return Err(Error::Refused(format!(
            "{name} is a thin volume that does not tell its pool, which has failed"
        )));
    }
    ThinWords::parse(name, line).map(Some)
}

/// Whether a line of another target than a volume's names a device.
fn is_named(table: &[Line], device: Device) -> bool {
    let number = device.to_string();
    table
        .iter()
        .filter(|line| line.target != "thin")
        .any(|line| line.words.split(' ').any(|word| word == number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(target: &str, words: &str) -> Line {
        Line {
            start: 0,
            sectors: 8,
            target: target.to_owned(),
            words: words.to_owned(),
        }
    }

    #[test]
    fn lines_of_volumes_are_read() -> Result {
        let found = params("x", &line("thin", "253:4 7 7:1"))?;
        let found = found.map(|p| (p.pool.minor, p.id, p.origin));
        let origin = Some(Device { major: 7, minor: 1 });
        assert_eq!(found, Some((4, 7, origin)));
        assert!(params("x", &line("linear", "253:4 7"))?.is_none());
        for words in ["Fail", "-", "253:4"] {
            assert!(params("x", &line("thin", words)).is_err());
        }
        Ok(())
    }

    #[test]
    fn a_pool_may_be_named_otherwise() {
        let pool = Device {
            major: 253,
            minor: 4,
        };
        let thin = line("thin", "253:4 7");
        assert!(!is_named(&[thin.clone(), line("linear", "253:40 0")], pool));
        assert!(is_named(&[thin, line("linear", "253:4 0")], pool));
    }
}
