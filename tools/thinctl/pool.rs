// SPDX-License-Identifier: GPL-2.0

//! Pools and the thin volumes that are active on them, as device-mapper tells of them.

use std::{
    fs,
    path::{
        Path,
        PathBuf, //
    },
};

use devicemapper::Device;
use rustix::io::Errno;
use serde::Serialize;

use persistent_data::{
    block::BlockNr,
    direct::DirectBm, //
};
use thin_metadata::format::{
    Superblock,
    MAX_TIME,
    SECTOR_SIZE,
    SUPERBLOCK_LOCATION, //
};

use crate::{
    dm::{
        Dm,
        Info,
        Line, //
    },
    error::{
        Error,
        Result, //
    },
    id,
};

/// The mode of a pool whose metadata do not change, as its status tells.
pub const READ_ONLY: &str = "ro";

/// The mode of a pool without free blocks.
const OUT_OF_DATA_SPACE: &str = "out_of_data_space";

/// What the status of such a pool says if writes to new blocks wait.
const QUEUE_IF_NO_SPACE: &str = "queue_if_no_space";

/// What the status of a pool says of discards if they do nothing.
pub const IGNORES_DISCARDS: &str = "ignore_discard";

/// A pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    /// The name of its device.
    pub name: String,
    /// The UUID of its device, if it has one.
    pub uuid: Option<String>,
    /// The number of its device.
    pub device: Device,
    /// The node of its metadata device.
    pub metadata: PathBuf,
    /// The node of its data device.
    pub data: PathBuf,
    /// The size of a block in bytes.
    pub block_size: u64,
    /// Whether a new block that is written in part shows in the rest what it held before.
    pub skips_zeroing: bool,
}

/// What a pool's status says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Status {
    /// A number for programs that manage pools.
    pub transaction_id: u64,
    /// How many metadata blocks are in use.
    pub used_metadata_blocks: u64,
    /// How many there are.
    pub metadata_blocks: u64,
    /// How many data blocks are in use.
    pub used_data_blocks: u64,
    /// How many there are.
    pub data_blocks: u64,
    /// Where the metadata snapshot is.
    pub metadata_snap: Option<u64>,
    /// `rw`, `ro` or `out_of_data_space`.
    pub mode: String,
    /// What becomes of discards.
    pub discard: String,
    /// What becomes of writes when no block is free.
    pub no_space: String,
    /// Whether the metadata must be checked.
    pub needs_check: bool,
}

impl Status {
    /// Reads the words of a status line.
    fn parse(words: &str) -> Option<Self> {
        let mut words = words.split_ascii_whitespace();
        let pair = |word: &str| {
            let (used, all) = word.split_once('/')?;
            Some((used.parse::<u64>().ok()?, all.parse::<u64>().ok()?))
        };
        let transaction_id = words.next()?.parse().ok()?;
        let (used_metadata_blocks, metadata_blocks) = pair(words.next()?)?;
        let (used_data_blocks, data_blocks) = pair(words.next()?)?;
        let metadata_snap = match words.next()? {
            "-" => None,
            root => Some(root.parse().ok()?),
        };
        Some(Self {
            transaction_id,
            used_metadata_blocks,
            metadata_blocks,
            used_data_blocks,
            data_blocks,
            metadata_snap,
            mode: words.next()?.to_owned(),
            discard: words.next()?.to_owned(),
            no_space: words.next()?.to_owned(),
            needs_check: words.next()? == "needs_check",
        })
    }
}

/// How far a pool's metadata are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// How many snapshots were taken so far; mappings are told apart by it. It ends at [`MAX_TIME`].
    pub time: u32,
    /// A number for programs that manage pools.
    pub transaction: u64,
}

impl Stamp {
    /// That of the metadata whose superblock is at `root`.
    pub fn at(bm: &DirectBm, root: BlockNr) -> Result<Self> {
        let superblock = Superblock::read(bm, root)?;
        Ok(Self {
            time: superblock.time.get(),
            transaction: superblock.trans_id.get(),
        })
    }

    /// Whether it is time to think of another pool, as no snapshot can be taken when the time has come to its end.
    pub fn is_late(&self) -> bool {
        self.time > MAX_TIME - MAX_TIME / 4
    }
}

/// A thin volume that is active.
#[derive(Clone, Debug)]
pub struct ActiveVolume {
    /// Its device.
    pub info: Info,
    /// Its id in the pool.
    pub id: u32,
    /// Its size in bytes.
    pub size: u64,
    /// The number of its external origin.
    pub origin: Option<Device>,
    /// Whether its device has nothing else.
    pub is_whole: bool,
}

impl ActiveVolume {
    fn new(info: Info, line: &Line, params: &ThinWords) -> Self {
        Self {
            info,
            id: params.id,
            size: line.sectors.saturating_mul(SECTOR_SIZE),
            origin: params.origin,
            is_whole: true,
        }
    }

    /// The volume whose device has this name, and its pool; `None` if it is no thin volume.
    pub fn find(dm: &Dm, name: &str) -> Result<Option<(Pool, Self)>> {
        let table = dm.table(name)?;
        let [line] = table.as_slice() else {
            return Ok(None);
        };
        let (Some(params), Some(info)) = (thin_params(name, line)?, dm.info(name)?) else {
            return Ok(None);
        };
        let pool = dm.name(params.pool)?.ok_or_else(|| {
            Error::NotFound(format!("{name}: its pool {} is not there", params.pool))
        })?;
        Ok(Some((
            Pool::find(dm, &pool)?,
            Self::new(info, line, &params),
        )))
    }

    /// How much of it is mapped, in bytes; nothing if its status does not tell.
    pub fn mapped(&self, dm: &Dm) -> Result<u64> {
        let status = dm.status(&self.info.name)?;
        let sectors = status
            .first()
            .and_then(|line| line.words.split(' ').next()?.parse::<u64>().ok());
        Ok(sectors.unwrap_or(0).saturating_mul(SECTOR_SIZE))
    }

    /// Whether lvm2 has made the device.
    pub fn is_of_lvm2(&self) -> bool {
        is_of_lvm2(self.info.uuid.as_deref())
    }
}

/// The words of a thin volume's line in a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ThinWords {
    /// The pool.
    pub pool: Device,
    /// The id of the volume in the pool.
    pub id: u32,
    /// Its external origin.
    pub origin: Option<Device>,
}

impl ThinWords {
    /// Reads a line of the table of device `name`, of a thin volume.
    pub fn parse(name: &str, line: &Line) -> Result<Self> {
        let mut words = line.words.split_ascii_whitespace();
        let mut parse = || {
            Some(Self {
                pool: words.next()?.parse().ok()?,
                id: words.next()?.parse().ok()?,
                origin: match words.next() {
                    None => None,
                    Some(origin) => Some(origin.parse().ok()?),
                },
            })
        };
        parse().ok_or_else(|| bad_line(name, format!("the table is \"{}\"", line.words)))
    }
}

/// The parameters of a thin volume; `None` if it is none, or does not tell.
fn thin_params(name: &str, line: &Line) -> Result<Option<ThinWords>> {
    // A failed pool's volumes do not tell their tables.
    if line.target != "thin" || matches!(line.words.as_str(), "Fail" | "-") {
        return Ok(None);
    }
    ThinWords::parse(name, line).map(Some)
}

/// Whether lvm2 has made a device with this UUID.
fn is_of_lvm2(uuid: Option<&str>) -> bool {
    uuid.is_some_and(|uuid| uuid.starts_with("LVM-"))
}

impl Pool {
    /// Finds a pool by the name or node of its device, or as lvm2's `vg/lv`.
    pub fn find(dm: &Dm, name: &str) -> Result<Self> {
        let mut other = None;
        for candidate in candidates(name) {
            let Some(info) = dm.info(&candidate)? else {
                continue;
            };
            let table = dm.table(&candidate)?;
            let line = match table.as_slice() {
                [line] if line.target == "thin-pool" => line,
                lines => {
                    let targets: Vec<_> = lines.iter().map(|line| line.target.as_str()).collect();
                    other = Some(match targets.as_slice() {
                        [] => format!("{candidate} is no pool: it has no table"),
                        targets => format!(
                            "{candidate} is no pool: its target is {}",
                            targets.join(", ")
                        ),
                    });
                    continue;
                }
            };
            let bad = || bad_line(&candidate, format!("the table is \"{}\"", line.words));
            let mut words = line.words.split_ascii_whitespace();
            let mut device = || words.next()?.parse::<Device>().ok();
            let (metadata, data) = device().zip(device()).ok_or_else(bad)?;
            let block_size = words
                .next()
                .and_then(|sectors| sectors.parse::<u64>().ok())
                .and_then(|sectors| sectors.checked_mul(SECTOR_SIZE))
                .ok_or_else(bad)?;
            return Ok(Self {
                name: candidate,
                uuid: info.uuid,
                device: info.device,
                metadata: node(metadata)?,
                data: node(data)?,
                block_size,
                skips_zeroing: line
                    .words
                    .split_ascii_whitespace()
                    .any(|word| word == "skip_block_zeroing"),
            });
        }
        match other {
            Some(other) => Err(Error::Refused(other)),
            None if name.contains('/') && Path::new(name).exists() => Err(Error::Refused(format!(
                "{name} is no pool, nor any device of device-mapper"
            ))),
            None => Err(Error::NotFound(format!(
                "there is no active pool {name}; `dmsetup ls --target thin-pool` lists those that are"
            ))),
        }
    }

    /// What the pool's status says; an error if it has failed.
    pub fn status(&self, dm: &Dm) -> Result<Status> {
        let status = dm.status(&self.name)?;
        let [line] = status.as_slice() else {
            return Err(Error::NotFound(format!(
                "{} is no pool any more",
                self.name
            )));
        };
        if matches!(line.words.as_str(), "Fail" | "Error") {
            return Err(Error::Refused(format!("pool {} has failed", self.name)));
        }
        Status::parse(&line.words).ok_or_else(|| {
            let words = &line.words;
            bad_line(&self.name, format!("the status is \"{words}\""))
        })
    }

    /// How far its metadata were at the last commit.
    pub fn stamp(&self) -> Result<Stamp> {
        Stamp::at(&DirectBm::open(&self.metadata)?, SUPERBLOCK_LOCATION)
    }

    /// Gives an error unless the pool can be changed.
    pub fn check_writable(&self, dm: &Dm) -> Result {
        match self.status(dm)?.mode.as_str() {
            READ_ONLY => Err(Error::Refused(format!("pool {} is read-only", self.name))),
            _ => Ok(()),
        }
    }

    /// Gives an error if writes wait until the pool is made larger.
    pub fn check_room(&self, dm: &Dm) -> Result {
        let status = self.status(dm)?;
        match (status.mode.as_str(), status.no_space.as_str()) {
            (OUT_OF_DATA_SPACE, QUEUE_IF_NO_SPACE) => Err(Error::Busy(format!(
                "pool {} is full, and writes wait until it is made larger",
                self.name
            ))),
            _ => Ok(()),
        }
    }

    /// The thin volumes that are active on it.
    pub fn active_volumes(&self, dm: &Dm) -> Result<Vec<ActiveVolume>> {
        loop {
            if let Some(volumes) = self.try_active_volumes(dm)? {
                return Ok(volumes);
            }
        }
    }

    /// As [`active_volumes`](Self::active_volumes); `None` if a device was renamed meanwhile.
    fn try_active_volumes(&self, dm: &Dm) -> Result<Option<Vec<ActiveVolume>>> {
        let mut volumes = Vec::new();
        let devices = dm.list()?;
        if !devices.contains(&(self.name.clone(), self.device)) {
            return Err(Error::Busy(format!(
                "pool {} was deactivated or renamed meanwhile",
                self.name
            )));
        }
        for (name, number) in devices {
            let table = match dm.table(&name) {
                // Devices come and go.
                Err(e) if e.errno() == Some(Errno::NXIO) => match dm.name(number)? {
                    Some(_) => return Ok(None),
                    None => continue,
                },
                table => table?,
            };
            for line in &table {
                let Some(params) = thin_params(&name, line)? else {
                    continue;
                };
                if params.pool != self.device {
                    continue;
                }
                let Some(info) = dm.info(&name)? else {
                    match dm.name(number)? {
                        Some(_) => return Ok(None),
                        None => break,
                    }
                };
                volumes.push(ActiveVolume {
                    is_whole: table.len() == 1,
                    ..ActiveVolume::new(info, line, &params)
                });
            }
        }
        Ok(Some(volumes))
    }

    /// The id of a volume, which is an id already or the name or node of an active volume.
    pub fn volume_id(&self, dm: &Dm, name: &str) -> Result<u32> {
        if id::is_number(name) {
            return id::parse(name).map_err(|e| Error::Usage(format!("{name}: {e}")));
        }
        let names = candidates(name);
        self.active_volumes(dm)?
            .into_iter()
            .find(|volume| names.contains(&volume.info.name))
            .map(|volume| volume.id)
            .ok_or_else(|| {
                Error::NotFound(format!(
                    "\"{name}\" is neither an id nor an active volume of pool {}",
                    self.name
                ))
            })
    }

    /// Deletes a volume; that there is none is no error.
    pub fn delete(&self, dm: &Dm, id: u32) -> Result {
        match dm.message(&self.name, &format!("delete {id}")) {
            Err(e) if e.errno() == Some(Errno::NODATA) => Ok(()),
            Err(e) if e.errno() == Some(Errno::BUSY) => Err(Error::Busy(format!(
                "volume {id} of pool {} is in use",
                self.name
            ))),
            result => result,
        }
    }

    /// Whether lvm2 manages it.
    pub fn is_of_lvm2(&self) -> bool {
        is_of_lvm2(self.uuid.as_deref())
    }

    /// The size of the smallest part of its volumes that can be read or written, in bytes.
    pub fn sector_size(&self) -> Result<u64> {
        let file = format!("/sys/dev/block/{}/queue/logical_block_size", self.device);
        let text = fs::read_to_string(&file).map_err(Error::io(&file))?;
        text.trim_end()
            .parse()
            .map_err(|e| bad_line(&self.name, format!("the size of a sector is {text:?}: {e}")))
    }

    /// Gives an error if a volume cannot have this size.
    pub fn check_size(&self, size: u64) -> Result {
        let sector = self.sector_size()?;
        if size.is_multiple_of(sector) {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "a volume of {size} bytes cannot be in pool {}, whose sectors have {sector} bytes",
            self.name
        )))
    }

    /// How much must be seen of a volume, in bytes, to write `size` bytes to it: whole blocks, if what is not written of them
    /// would show what they held before.
    pub fn size_to_write(&self, size: u64) -> u64 {
        let size = size.max(1);
        match self.skips_zeroing {
            true => size
                .checked_next_multiple_of(self.block_size)
                .unwrap_or(size),
            false => size,
        }
    }

    /// The words of a table for volume `id`.
    pub fn thin_words(&self, id: u32) -> String {
        self.thin_words_over(id, None)
    }

    /// As [`thin_words`](Self::thin_words), with an external origin if there is one.
    pub fn thin_words_over(&self, id: u32, origin: Option<Device>) -> String {
        match origin {
            None => format!("{} {id}", self.device),
            Some(origin) => format!("{} {id} {origin}", self.device),
        }
    }
}

/// The names of devices that `name` may mean.
pub fn candidates(name: &str) -> Vec<String> {
    let name = name.strip_prefix("/dev/mapper/").unwrap_or(name);
    let plain = name.strip_prefix("/dev/").unwrap_or(name);
    if let Some((vg, lv)) = plain.split_once('/') {
        // The names of both are joined by a hyphen, so hyphens in them are doubled.
        let joined = format!("{}-{}", vg.replace('-', "--"), lv.replace('-', "--"));
        return vec![format!("{joined}-tpool"), joined];
    }
    if plain.starts_with("dm-") {
        if let Ok(name) = fs::read_to_string(format!("/sys/class/block/{plain}/dm/name")) {
            return vec![name.trim_end().to_owned()];
        }
    }
    // None has a name with such letters, which device-mapper would complain of.
    match name.contains('/') {
        true => Vec::new(),
        false => vec![name.to_owned()],
    }
}

/// The node of a device, also without udev.
pub fn node(device: Device) -> Result<PathBuf> {
    let file = format!("/sys/dev/block/{device}/uevent");
    let uevent = fs::read_to_string(&file).map_err(Error::io(&file))?;
    uevent
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))
        .map(|name| Path::new("/dev").join(name))
        .ok_or_else(|| Error::NotFound(format!("device {device} has no node")))
}

fn bad_line(device: &str, e: impl std::fmt::Display) -> Error {
    Error::Refused(format!("{device}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_are_read() {
        let status =
            Status::parse("3 34/4096 12/8192 - rw ignore_discard queue_if_no_space - 1024");
        let status = status.map(|s| {
            (
                s.transaction_id,
                s.used_data_blocks,
                s.metadata_snap,
                s.needs_check,
            )
        });
        assert_eq!(status, Some((3, 12, None, false)));
        let held =
            "0 1/2 3/4 77 out_of_data_space no_discard_passdown error_if_no_space needs_check 1";
        let held = Status::parse(held).map(|s| (s.metadata_blocks, s.metadata_snap, s.needs_check));
        assert_eq!(held, Some((2, Some(77), true)));
        assert_eq!(Status::parse("0 1/2 3/4 - rw"), None);
    }

    #[test]
    fn three_quarters_of_the_time_are_late() {
        let is_late = |time| {
            let transaction = 0;
            Stamp { time, transaction }.is_late()
        };
        assert!(!is_late(0) && !is_late(12 << 20) && is_late((12 << 20) + 1) && is_late(MAX_TIME));
    }

    #[test]
    fn names_of_lvm2_are_those_of_its_devices() {
        assert_eq!(candidates("vg/pool"), ["vg-pool-tpool", "vg-pool"]);
        assert_eq!(
            candidates("/dev/my-vg/a-b"),
            ["my--vg-a--b-tpool", "my--vg-a--b"]
        );
        assert_eq!(candidates("/dev/mapper/pool"), ["pool"]);
        assert_eq!(candidates("pool"), ["pool"]);
    }
}
