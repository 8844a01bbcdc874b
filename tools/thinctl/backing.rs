// SPDX-License-Identifier: GPL-2.0

//! What a file lies on.

use std::{
    ffi::OsString,
    fs,
    io::ErrorKind,
    os::unix::{
        ffi::OsStringExt,
        fs::{
            FileTypeExt,
            MetadataExt, //
        },
    },
    path::{
        Path,
        PathBuf, //
    },
};

use devicemapper::Device;

use crate::error::{
    Error,
    Result, //
};

/// So many layers of devices and file systems are looked through.
const DEEPEST: u32 = 32;

/// Whether a file needs a device to be read or written: its file system lies on it, or on something that does.
pub fn lies_on(path: &Path, device: Device) -> Result<bool> {
    file_needs(path, &device.to_string(), DEEPEST)
}

/// Whether a device is another one, or lies on it.
pub fn device_lies_on(upper: Device, device: Device) -> Result<bool> {
    device_needs(&upper.to_string(), &device.to_string(), DEEPEST)
}

fn file_needs(path: &Path, wanted: &str, depth: u32) -> Result<bool> {
    let number = fs::metadata(path).map_err(Error::io(path.display()))?.dev();
    let number = Device::from(number).to_string();
    if folder(&number).exists() {
        return device_needs(&number, wanted, depth);
    }
    // File systems of several devices, or of none, have numbers of their own.
    let Some(mount) = mount_of(path)? else {
        return Ok(false);
    };
    for source in mount.below() {
        let Ok(metadata) = fs::metadata(&source) else {
            continue;
        };
        let Some(depth) = depth.checked_sub(1) else {
            return Ok(false);
        };
        if metadata.is_dir() {
            if file_needs(&source, wanted, depth)? {
                return Ok(true);
            }
            continue;
        }
        let number = Device::from(metadata.rdev()).to_string();
        for number in of_same_btrfs(&number)?.into_iter().chain([number]) {
            if device_needs(&number, wanted, depth)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The devices of the btrfs that a device belongs to, of which a mount tells one.
fn of_same_btrfs(number: &str) -> Result<Vec<String>> {
    for system in entries(Path::new("/sys/fs/btrfs"))? {
        let mut numbers = Vec::new();
        for device in entries(&system.join("devices"))? {
            let text = fs::read_to_string(device.join("dev")).unwrap_or_default();
            numbers.push(text.trim_end().to_owned());
        }
        if numbers.iter().any(|one| one == number) {
            return Ok(numbers);
        }
    }
    Ok(Vec::new())
}

fn device_needs(number: &str, wanted: &str, depth: u32) -> Result<bool> {
    if number == wanted {
        return Ok(true);
    }
    let Some(depth) = depth.checked_sub(1) else {
        return Ok(false);
    };
    let folder = folder(number);
    for slave in entries(&folder.join("slaves"))? {
        let text = fs::read_to_string(slave.join("dev")).unwrap_or_default();
        if device_needs(text.trim_end(), wanted, depth)? {
            return Ok(true);
        }
    }
    // The disk of a partition is the folder above it.
    if folder.join("partition").exists() {
        let text = fs::read_to_string(folder.join("../dev")).unwrap_or_default();
        if device_needs(text.trim_end(), wanted, depth)? {
            return Ok(true);
        }
    }
    match fs::read_to_string(folder.join("loop/backing_file")) {
        Ok(file) => match file_needs(Path::new(file.trim_end()), wanted, depth) {
            // The file may have no name any more.
            Err(_) => Ok(false),
            result => result,
        },
        Err(_) => Ok(false),
    }
}

/// The devices that a device lies on, which is none of device-mapper's.
pub fn below(device: Device) -> Result<Vec<Device>> {
    let folder = folder(&device.to_string());
    let mut found = Vec::new();
    for slave in entries(&folder.join("slaves"))? {
        found.extend(number_in(&slave.join("dev")));
    }
    found.extend(disk_of(device));
    if let Ok(file) = fs::read_to_string(folder.join("loop/backing_file")) {
        // The file may have no name any more.
        if let Ok(metadata) = fs::metadata(file.trim_end_matches('\n')) {
            let number = match metadata.file_type().is_block_device() {
                true => metadata.rdev(),
                false => metadata.dev(),
            };
            found.push(Device::from(number));
        }
    }
    Ok(found)
}

/// The disk of a partition; `None` if it is none.
pub fn disk_of(device: Device) -> Option<Device> {
    let folder = folder(&device.to_string());
    if !folder.join("partition").exists() {
        return None;
    }
    // The folder above it, wherever the link leads.
    number_in(&folder.join("../dev"))
}

fn number_in(file: &Path) -> Option<Device> {
    fs::read_to_string(file).ok()?.trim_end().parse().ok()
}

fn folder(number: &str) -> PathBuf {
    Path::new("/sys/dev/block").join(number)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(found) => found
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<_>>()
            .map_err(Error::io(folder.display())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::Io(folder.display().to_string(), e)),
    }
}

/// A file system that is mounted.
struct Mount {
    source: PathBuf,
    options: Vec<u8>,
}

impl Mount {
    /// What it lies on.
    fn below(&self) -> Vec<PathBuf> {
        let folders = self
            .options
            .split(|&byte| byte == b',')
            .filter_map(|option| {
                // Of overlayfs.
                ["upperdir=", "workdir="]
                    .iter()
                    .find_map(|name| option.strip_prefix(name.as_bytes()))
            });
        let mut found: Vec<PathBuf> = folders.map(unescaped).collect();
        if self.source.is_absolute() {
            found.push(self.source.clone());
        }
        found
    }
}

/// A name, of which the kernel writes blanks and the like as octal numbers.
fn unescaped(word: &[u8]) -> PathBuf {
    let mut name = Vec::new();
    let mut rest = word;
    while let [first, after @ ..] = rest {
        let number = match rest {
            [b'\\', digits @ ..] => digits.get(..3).and_then(|digits| {
                let digits = std::str::from_utf8(digits).ok()?;
                u8::from_str_radix(digits, 8).ok()
            }),
            _ => None,
        };
        name.push(number.unwrap_or(*first));
        rest = match number {
            Some(_) => after.get(3..).unwrap_or_default(),
            None => after,
        };
    }
    PathBuf::from(OsString::from_vec(name))
}

/// The mount that a file is in.
fn mount_of(path: &Path) -> Result<Option<Mount>> {
    const FILE: &str = "/proc/self/mountinfo";
    let path = path.canonicalize().map_err(Error::io(path.display()))?;
    // A name may be in any encoding.
    let lines = fs::read(FILE).map_err(Error::io(FILE))?;
    Ok(find_mount(&lines, &path))
}

fn find_mount(lines: &[u8], path: &Path) -> Option<Mount> {
    let mut found: Option<(usize, Mount)> = None;
    for line in lines.split(|&byte| byte == b'\n') {
        // See proc(5): fields of which some are optional, a hyphen, then type, source and options.
        let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let hyphen = words.iter().position(|word| *word == b"-");
        let after = hyphen.and_then(|at| words.get(at..)).unwrap_or_default();
        let (Some(place), Some(source)) = (words.get(4), after.get(2)) else {
            continue;
        };
        let place = unescaped(place);
        let depth = place.components().count();
        // Of those in one place the last one is seen.
        if path.starts_with(place) && found.as_ref().is_none_or(|(deepest, _)| depth >= *deepest) {
            let options = after.get(3).copied().unwrap_or_default().to_owned();
            let source = unescaped(source);
            found = Some((depth, Mount { source, options }));
        }
    }
    found.map(|(_, mount)| mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "\
21 1 0:30 / / rw,relatime shared:1 - btrfs /dev/vg/root rw,space_cache
22 21 0:5 / /run rw shared:2 - tmpfs tmpfs rw
23 21 0:31 / /merged rw - overlay overlay rw,lowerdir=/a,upperdir=/b/up,workdir=/b/work
24 21 8:1 / /run/data rw - ext4 /dev/sda1 rw
25 21 0:32 / /run/my\\040data rw - btrfs /dev/sdb\\0401 rw
";

    #[test]
    fn the_deepest_mount_is_found() {
        let below = |path: &str| {
            let mount = find_mount(LINES.as_bytes(), Path::new(path));
            mount.map(|mount| mount.below()).unwrap_or_default()
        };
        assert_eq!(below("/var/lib/x"), [Path::new("/dev/vg/root")]);
        assert_eq!(below("/running"), [Path::new("/dev/vg/root")]);
        assert!(below("/run/x").is_empty());
        assert_eq!(below("/run/data/x"), [Path::new("/dev/sda1")]);
        assert_eq!(below("/run/my data/x"), [Path::new("/dev/sdb 1")]);
        assert_eq!(
            below("/merged/x"),
            [Path::new("/b/up"), Path::new("/b/work")]
        );
    }
}
