// SPDX-License-Identifier: GPL-2.0

//! A device before it is written to: whether it is free, and what is lost and taken up by writing to it.

use std::{
    path::Path,
    sync::Arc,
    time::Duration, //
};

use devicemapper::Device as Number;

use crate::{
    below::Below,
    device::{
        self,
        Device, //
    },
    dm::{
        Dm,
        Line, //
    },
    error::{
        Error,
        Result, //
    },
    pool::{
        node,
        ActiveVolume,
        Pool,
        IGNORES_DISCARDS, //
    },
    room::Room,
    session::Session,
    signals,
    stack::{
        self,
        Thin, //
    },
    stream::Header,
    usage, //
};

/// How often to look whether a device is still open: udev opens what has just been closed, to see what is there.
const LOOKS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// A device, before it is written to.
pub struct Place<'a> {
    pub dm: Arc<Dm>,
    pub path: &'a Path,
    pub number: Number,
    pub header: Header,
    pub anyway: bool,
}

/// What a device is like, which must not change while it is written to.
#[derive(PartialEq, Eq)]
pub struct Shape {
    /// In bytes.
    pub size: u64,
    /// The table that it works with, if it is one of device-mapper's.
    pub table: Vec<Line>,
}

/// What was found when a device was looked at.
pub struct Look {
    pub shape: Shape,
    pub kind: Kind,
}

/// What a device is.
pub enum Kind {
    /// A thin volume.
    Thin(Volume),
    /// Another one, which may lie on thin volumes.
    Other(Below),
}

/// A thin volume.
pub struct Volume {
    pub id: u32,
    pub room: Room,
    /// Whether nothing of it is unmapped: that would show an origin, or be ignored.
    pub is_overwritten: bool,
    /// How much is mapped, in bytes.
    mapped: u64,
    /// How much may take up blocks, in bytes, if nothing is given up before and all that is mapped is shared.
    wanted: u64,
    /// As much, of which what is mapped and not shared takes up none.
    wanted_over: u64,
}

impl Place<'_> {
    /// Looks at the device, which this process has opened exclusively; gives an error if it cannot be written to.
    pub fn look(&self, device: &Device) -> Result<Look> {
        check_size(self.path, &self.header, device)?;
        let shape = self.shape(device)?;
        let dm = &self.dm;
        let thins = check_free(dm, self.path, self.number)?;
        let found = match dm.name(self.number)? {
            Some(name) => ActiveVolume::find(dm, &name)?,
            None => None,
        };
        let kind = match found {
            Some((pool, volume)) => Kind::Thin(self.volume(pool, &volume, shape.size)?),
            None => Kind::Other(Below::of(dm, &thins, self.anyway)?),
        };
        Ok(Look { shape, kind })
    }

    pub fn shape(&self, device: &Device) -> Result<Shape> {
        let mut table = match self.dm.name(self.number)? {
            Some(name) => self.dm.table(&name)?,
            None => Vec::new(),
        };
        // Which of its ways it goes is told, too.
        for line in table.iter_mut().filter(|line| line.target == "multipath") {
            line.words.clear();
        }
        Ok(Shape {
            size: device.size_now()?,
            table,
        })
    }

    fn volume(&self, pool: Pool, volume: &ActiveVolume, size: u64) -> Result<Volume> {
        pool.check_writable(&self.dm)?;
        let ignores_discards = pool.status(&self.dm)?.discard == IGNORES_DISCARDS;
        let mapped = volume.mapped(&self.dm)?;
        let data = self.header.data;
        let (wanted, wanted_over) = match volume.origin {
            None if !ignores_discards => (data, data),
            origin => {
                // Zeroes are written over what is mapped, and where an origin shows.
                let shown = match origin {
                    Some(origin) => Device::open(&node(origin)?)?.size,
                    None => 0,
                };
                let wanted = data.saturating_add(mapped).saturating_add(shown);
                (wanted.min(size), size)
            }
        };
        Ok(Volume {
            id: volume.id,
            room: Room::of(self.dm.clone(), pool, self.anyway),
            is_overwritten: ignores_discards || volume.origin.is_some(),
            mapped,
            wanted,
            wanted_over,
        })
    }

    pub fn changed(&self) -> Error {
        Error::Busy(format!(
            "{} has changed since it was looked at, and is not written to as it is now; do it again",
            self.path.display()
        ))
    }
}

impl Look {
    /// Whether nothing is lost when the device is written to.
    pub fn is_empty(&self) -> bool {
        matches!(
            self.kind,
            Kind::Thin(Volume {
                mapped: 0,
                is_overwritten: false,
                ..
            })
        )
    }
}

/// Calls `f` if pools have room. If that depends on what a volume has for itself, nobody makes snapshots of the volume by
/// thinctl or lvm2 until `f` is done, or takes the metadata snapshot by thinctl.
pub fn with_room<X>(
    look: &Look,
    session: &impl Fn(&str) -> Result<Session>,
    f: impl FnOnce() -> Result<X>,
) -> Result<X> {
    let volume = match &look.kind {
        Kind::Thin(volume) => volume,
        Kind::Other(below) => {
            below.check_all(look.shape.size)?;
            return f();
        }
    };
    match volume.room.check(volume.wanted) {
        Err(Error::NoRoom(_)) if volume.mapped > 0 => {}
        result => {
            result?;
            return f();
        }
    }
    let session = session(&volume.room.pool().name)?;
    let (_turn, _slot) = session.turn_with_slot(volume.id)?;
    let own = usage::exclusive(&session, volume.id)?;
    volume.room.check_over(volume.wanted_over, own)?;
    f()
}

fn check_size(path: &Path, header: &Header, device: &Device) -> Result {
    let (path, there, wanted) = (path.display(), device.size_now()?, header.size);
    if wanted > there {
        return Err(Error::Refused(format!(
            "{path} has {there} bytes, and the volume has {wanted}"
        )));
    }
    let sector = device.sector_size()?;
    if !wanted.is_multiple_of(sector) {
        return Err(Error::Refused(format!(
            "a volume of {wanted} bytes cannot be in {path}, whose sectors have {sector} bytes"
        )));
    }
    Ok(())
}

/// What is told of a device that somebody else has.
pub fn in_use(path: &Path, what_now: &str) -> Error {
    Error::Busy(format!("{} is in use: {what_now}", path.display()))
}

/// Gives an error if a device that this process has opened exclusively is used otherwise, or is not for writing to; else
/// the thin volumes that it is or lies on.
pub fn check_free(dm: &Dm, path: &Path, number: Number) -> Result<Vec<Thin>> {
    if device::is_read_only(number)? {
        return Err(Error::Refused(format!(
            "{} is read-only; nothing was written to it",
            path.display()
        )));
    }
    if let Some(name) = dm.name(number)? {
        check_unused(dm, path, &name)?;
    }
    if let Some(name) = stack::loop_device(number)? {
        return Err(in_use(path, &format!("{name} lies on it")));
    }
    let thins = stack::thins(dm, number).map_err(|e| match e {
        Error::Refused(why) => Error::Refused(format!("{}: {why}", path.display())),
        e => e,
    })?;
    for thin in &thins {
        if let Some(alias) = stack::alias(dm, thin)? {
            return Err(in_use(
                path,
                &format!("its volume is active as {alias}, too"),
            ));
        }
    }
    Ok(thins)
}

/// Gives an error if somebody else has a device open, or has suspended it.
fn check_unused(dm: &Dm, path: &Path, name: &str) -> Result {
    for _ in 0..LOOKS {
        let Some(info) = dm.info(name)? else {
            break;
        };
        if info.suspended {
            return Err(in_use(path, "somebody has suspended it"));
        }
        // Once by this process.
        if info.open_count <= 1 {
            return Ok(());
        }
        signals::sleep(PAUSE)?;
    }
    Err(in_use(path, "another process has it open"))
}
