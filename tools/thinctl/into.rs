// SPDX-License-Identifier: GPL-2.0

//! Writing a whole volume into a device that is there, whoever has made it.
//!
//! The device is changed in place, so that it holds neither the old nor the new content until all is written. If that is
//! cut off, the next run begins anew: nobody can tell what was done to the device in between. For the same reason changes
//! that start from a state are refused: others can write to a device that is active at any time, and what was changed of it
//! when a stream ends too early could not be taken back.
//!
//! What happens before what cannot be undone, the first write:
//!
//! - Nobody else has mounted the device, made it part of another one or opened it exclusively, from before the first look at
//!   it until it is closed. Whoever opens it otherwise is seen if it is a device of device-mapper, or by a loop device, but
//!   not who comes later.
//! - It is no pool, and lies on none but as volumes of it, which are active nowhere else.
//! - It is large enough, its sectors fit, and its pool, or the pools of the volumes that it lies on, can be written to and
//!   have room. What a volume shares with others gives no room.
//! - If it holds anything, what can be read twice was read to its end, and nothing of it is damaged. That takes its time, so
//!   all the rest is looked at before and after it.
//!
//! It is told to be done only if the device has the size and the table that it had.

use std::{
    path::Path,
    sync::Arc,
    time::Duration, //
};

use devicemapper::Device as Number;
use rustix::io::Errno;

use crate::{
    copy::Target,
    cut,
    device::{
        self,
        Buffer,
        Device,
        CHUNK, //
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
    stream::{
        Changes,
        Header,
        Record, //
    },
    tell::tell,
    usage, //
};

/// How often to look whether a device is still open: udev opens what has just been closed, to see what is there.
const LOOKS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// How much is zeroed at once, in bytes.
const PIECE: u64 = 1 << 30;

/// Writes what `changes` lead to into the device `path`, and zeroes everywhere else. Nothing is compared with the room in a
/// pool if it is to be tried `anyway`. What can be read twice is read to its end before the device's content is given up, if it
/// has any. `session` begins work with the pool of a name. `progress` is told of each piece of data.
pub fn write_into(
    path: &Path,
    anyway: bool,
    session: impl Fn(&str) -> Result<Session>,
    changes: &mut dyn Changes,
    progress: impl FnMut(u64),
) -> Result {
    let header = changes.header().clone();
    check_header(path, &header)?;
    let dm = Arc::new(Dm::new()?);
    let path = &device::find(&dm, path)?;
    let device = match Device::open_exclusively(path) {
        Err(e) if e.errno() == Some(Errno::BUSY) => {
            return Err(in_use(path, "unmount it, and deactivate what uses it"))
        }
        result => result?,
    };
    let place = Place {
        dm,
        path,
        number: device.number()?,
        header,
        anyway,
    };
    let before = place.look(&device)?;
    with_room(&before, &session, || Ok(()))?;
    if !before.is_empty() {
        // It changes nothing, but others may do so while it lasts.
        cut::point();
        changes.rehearse()?;
    }
    let mut output = Output::new(device, &before)?;
    let mut is_begun = false;
    let mut written = with_room(&before, &session, || {
        // Right before the first write, as the rehearsal may have taken long.
        let now = place.look(output.device())?;
        if now.shape != before.shape || (before.is_empty() && !now.is_empty()) {
            return Err(place.changed());
        }
        is_begun = true;
        output.give_up_old(before.shape.size)
    });
    if is_begun {
        written = written
            .and_then(|()| write(&mut output, before.shape.size, changes, progress))
            .and_then(|()| match place.shape(output.device())? == before.shape {
                true => Ok(()),
                false => Err(place.changed()),
            });
        if written.is_err() && output.is_touched {
            tell(format_args!(
                "{} holds a part of the volume only; the whole of it is written anew the next time",
                path.display()
            ));
        }
    }
    written
}

fn check_header(path: &Path, header: &Header) -> Result {
    let path = path.display();
    match header {
        Header { from: Some(_), .. } => Err(Error::Refused(format!(
            "the stream has what changed since a state, and nobody can tell whether {path} is in it, and stays so; only a \
             whole volume can be written into a device"
        ))),
        Header { start: 1.., .. } => Err(Error::Refused(format!(
            "the stream continues another one from byte {} on; a volume is always written into {path} from its beginning",
            header.start
        ))),
        _ => Ok(()),
    }
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

fn in_use(path: &Path, what_now: &str) -> Error {
    Error::Busy(format!("{} is in use: {what_now}", path.display()))
}

/// Writes all of it, where what can be unmapped is unmapped.
fn write(
    output: &mut Output,
    size: u64,
    changes: &mut dyn Changes,
    mut progress: impl FnMut(u64),
) -> Result {
    let mut done = 0;
    loop {
        signals::check()?;
        match changes.next()? {
            Some(Record::Data { offset, data }) => {
                let len = data.len() as u64;
                output.zero(done, offset)?;
                output.write(offset, &data)?;
                done = offset.saturating_add(len);
                progress(len);
            }
            // Nothing is mapped there, as in all that is left out.
            Some(Record::Discard { .. }) => {}
            None => break,
        }
    }
    output.zero(done, size)?;
    output.flush()
}

/// A device, before it is written to.
struct Place<'a> {
    dm: Arc<Dm>,
    path: &'a Path,
    number: Number,
    header: Header,
    anyway: bool,
}

/// What a device is like, which must not change while it is written to.
#[derive(PartialEq, Eq)]
struct Shape {
    /// In bytes.
    size: u64,
    /// The table that it works with, if it is one of device-mapper's.
    table: Vec<Line>,
}

/// What was found when a device was looked at.
struct Look {
    shape: Shape,
    kind: Kind,
}

/// What a device is.
enum Kind {
    /// A thin volume.
    Thin(Volume),
    /// Another one, which may lie on thin volumes: the room in their pools.
    Other(Vec<Below>),
}

/// A thin volume.
struct Volume {
    id: u32,
    room: Room,
    /// Whether nothing of it is unmapped: that would show an origin, or be ignored.
    is_overwritten: bool,
    /// How much is mapped, in bytes.
    mapped: u64,
    /// How much may take up blocks, in bytes, if nothing is given up before and all that is mapped is shared.
    wanted: u64,
    /// As much, of which what is mapped and not shared takes up none.
    wanted_over: u64,
}

/// A pool on whose volumes a device lies.
struct Below {
    room: Room,
    /// What all of the device may take up, in bytes.
    wanted: u64,
    /// What may be taken up besides what is written, as that need not begin where a block does, in bytes.
    more: u64,
}

impl Place<'_> {
    /// Looks at the device, which this process has opened exclusively; gives an error if it cannot be written to.
    fn look(&self, device: &Device) -> Result<Look> {
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
            None => Kind::Other(self.below(&thins, shape.size)?),
        };
        Ok(Look { shape, kind })
    }

    fn shape(&self, device: &Device) -> Result<Shape> {
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

    /// The pools of `thins`.
    fn below(&self, thins: &[Thin], size: u64) -> Result<Vec<Below>> {
        let mut found: Vec<Below> = Vec::new();
        for thin in thins {
            let known = found
                .iter_mut()
                .find(|below| below.room.pool().device == thin.pool);
            let below = match known {
                Some(below) => below,
                None => {
                    let name = self.dm.name(thin.pool)?.ok_or_else(|| {
                        let (device, pool) = (&thin.device, thin.pool);
                        Error::NotFound(format!("{device}: its pool {pool} is not there"))
                    })?;
                    let pool = Pool::find(&self.dm, &name)?;
                    pool.check_writable(&self.dm)?;
                    let room = Room::of(self.dm.clone(), pool, self.anyway);
                    found.push(Below {
                        room,
                        wanted: 0,
                        more: 0,
                    });
                    match found.last_mut() {
                        Some(below) => below,
                        None => continue,
                    }
                }
            };
            let block = below.room.pool().block_size;
            // A block each at the beginning and at the end may be there in part.
            let most = thin.size.min(size).saturating_add(block.saturating_mul(2));
            below.wanted = below.wanted.saturating_add(most);
            below.more = below.more.saturating_add(block);
        }
        Ok(found)
    }

    fn changed(&self) -> Error {
        Error::Busy(format!(
            "{} has changed since it was looked at, and is not written to as it is now; do it again",
            self.path.display()
        ))
    }
}

impl Look {
    /// Whether nothing is lost when the device is written to.
    fn is_empty(&self) -> bool {
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
fn with_room<X>(
    look: &Look,
    session: &impl Fn(&str) -> Result<Session>,
    f: impl FnOnce() -> Result<X>,
) -> Result<X> {
    let volume = match &look.kind {
        Kind::Thin(volume) => volume,
        Kind::Other(all) => {
            for below in all {
                below.room.check_below(below.wanted)?;
            }
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

/// Where it is written to, and whether that was begun.
struct Output {
    to: To,
    is_touched: bool,
}

enum To {
    /// A thin volume, and whether nothing of it is unmapped.
    Thin(Box<Target>, bool),
    /// Another device, and the pools on whose volumes it lies.
    Other(Device, Buffer, Vec<(Room, u64)>),
}

impl Output {
    fn new(device: Device, look: &Look) -> Result<Self> {
        let volume = match &look.kind {
            Kind::Thin(volume) => volume,
            Kind::Other(all) => {
                let all = all.iter().map(|below| (below.room.clone(), below.more));
                return Ok(Self::untouched(To::Other(
                    device,
                    Buffer::new(),
                    all.collect(),
                )));
            }
        };
        let mut target = Target::over(device, volume.room.pool(), volume.room.clone())?;
        if volume.is_overwritten {
            target.overwrites();
        }
        Ok(Self::untouched(To::Thin(
            Box::new(target),
            volume.is_overwritten,
        )))
    }

    fn untouched(to: To) -> Self {
        Self {
            to,
            is_touched: false,
        }
    }

    fn device(&self) -> &Device {
        match &self.to {
            To::Thin(target, _) => target.device(),
            To::Other(device, ..) => device,
        }
    }

    /// Unmaps the old content, so that there is room for the new one.
    fn give_up_old(&mut self, size: u64) -> Result {
        let Self { to, is_touched } = self;
        match to {
            To::Thin(target, false) => for_pieces(0, size, PIECE, |offset, len| {
                *is_touched = true;
                target.unmap(offset, len)
            }),
            To::Thin(_, true) | To::Other(..) => Ok(()),
        }
    }

    fn write(&mut self, mut offset: u64, data: &[u8]) -> Result {
        self.is_touched = true;
        let (device, buffer, below) = match &mut self.to {
            To::Thin(target, _) => return target.write(offset, data),
            To::Other(device, buffer, below) => (device, buffer, below),
        };
        for part in data.chunks(CHUNK) {
            let aligned = buffer.get(part.len());
            aligned.copy_from_slice(part);
            check_below(below, part.len() as u64)?;
            device.write(offset, aligned)?;
            offset = offset.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    /// Makes sure that zeroes are read from `begin` to `end`.
    fn zero(&mut self, begin: u64, end: u64) -> Result {
        let Self { to, is_touched } = self;
        let piece = match to {
            // Each piece is compared with the room.
            To::Other(_, _, below) if !below.is_empty() => CHUNK as u64,
            _ => PIECE,
        };
        for_pieces(begin, end, piece, |offset, len| {
            *is_touched = true;
            match to {
                To::Thin(target, _) => target.discard(offset, len),
                To::Other(device, _, below) => {
                    check_below(below, len)?;
                    device.zero(offset, len)
                }
            }
        })
    }

    fn flush(&self) -> Result {
        match &self.to {
            To::Thin(target, _) => target.flush(),
            To::Other(device, ..) => device.flush(),
        }
    }
}

/// Gives an error if a pool could run full of so many bytes.
fn check_below(below: &[(Room, u64)], len: u64) -> Result {
    below
        .iter()
        .try_for_each(|(room, more)| room.check_below(len.saturating_add(*more)))
}

/// Calls `f` for pieces that end at multiples of `size`, which are multiples of the size of blocks if that is a power of
/// two and not larger.
fn for_pieces(
    mut begin: u64,
    end: u64,
    size: u64,
    mut f: impl FnMut(u64, u64) -> Result,
) -> Result {
    let size = size.max(1);
    while begin < end {
        signals::check()?;
        let next = begin
            .saturating_add(size.saturating_sub(begin % size))
            .min(end);
        f(begin, next.saturating_sub(begin))?;
        begin = next;
    }
    Ok(())
}

/// Gives an error if a pool has no room for so many bytes that are written to a device which lies on these volumes.
pub fn check_room_below(dm: &Arc<Dm>, thins: &[Thin], bytes: u64) -> Result {
    let mut pools: Vec<Number> = thins.iter().map(|thin| thin.pool).collect();
    pools.sort_by_key(|pool| (pool.major, pool.minor));
    pools.dedup();
    for number in pools {
        let of_pool = thins.iter().filter(|thin| thin.pool == number);
        let size = of_pool.fold(0u64, |sum, thin| sum.saturating_add(thin.size));
        if let Some(name) = dm.name(number)? {
            let room = Room::of(dm.clone(), Pool::find(dm, &name)?, false);
            room.check_below(bytes.min(size))?;
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateId;

    #[test]
    fn pieces_have_all_of_it() -> Result {
        for (begin, end) in [(0, 0), (5, 5), (7, 3 * PIECE + 1), (PIECE, 2 * PIECE)] {
            let mut next = begin;
            for_pieces(begin, end, PIECE, |offset, len| {
                assert!(offset == next && len > 0 && len <= PIECE);
                next = offset + len;
                assert!(next == end || next.is_multiple_of(PIECE));
                Ok(())
            })?;
            assert_eq!(next, end);
        }
        Ok(())
    }

    #[test]
    fn only_whole_volumes_are_taken() {
        let state = StateId::new([0; 32]);
        let header = |from, start| Header {
            size: 1 << 20,
            block_size: 65536,
            to: state,
            from,
            start,
            data: 0,
            name: String::new(),
            time: 0,
        };
        let check = |from, start| check_header(Path::new("/dev/x"), &header(from, start));
        assert!(check(None, 0).is_ok());
        assert!(matches!(check(Some(state), 0), Err(Error::Refused(_))));
        assert!(matches!(check(None, 65536), Err(Error::Refused(_))));
    }
}
