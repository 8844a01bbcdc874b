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
//!   it until it is closed. Whoever opens it otherwise is seen if it is a device of device-mapper, but not who comes later.
//! - It is no pool, and lies on none.
//! - It is large enough, its sectors fit, and its pool can be written to and has room.
//! - If it holds anything, what can be read twice was read to its end, and nothing of it is damaged.

use std::{
    path::Path,
    sync::Arc,
    time::Duration, //
};

use devicemapper::Device as Number;
use rustix::io::Errno;

use crate::{
    copy::Target,
    device::{
        Buffer,
        Device,
        CHUNK, //
    },
    dm::Dm,
    error::{
        Error,
        Result, //
    },
    pool::ActiveVolume,
    room::Room,
    signals,
    stream::{
        Changes,
        Header,
        Record, //
    },
};

/// How often to look whether a device is still open: udev opens what has just been closed, to see what is there.
const LOOKS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// How much is zeroed at once, in bytes.
const PIECE: u64 = 1 << 30;

/// Writes what `changes` lead to into the device `path`, and zeroes everywhere else. Nothing is compared with the room in a
/// pool if it is to be tried `anyway`. `rehearse` is called before the device's content is given up, if it has any.
/// `progress` is told of each piece of data.
pub fn write_into(
    path: &Path,
    anyway: bool,
    rehearse: impl FnOnce() -> Result,
    changes: &mut dyn Changes,
    progress: impl FnMut(u64),
) -> Result {
    let header = changes.header().clone();
    check_header(path, &header)?;
    let device = match Device::open_exclusively(path) {
        Err(e) if e.errno() == Some(Errno::BUSY) => {
            return Err(in_use(path, "unmount it, and deactivate what uses it"))
        }
        result => result?,
    };
    let number = device.number()?;
    let size = device.size;
    check_size(path, &header, &device)?;
    let mut output = Output::new(path, device, number, &header, anyway)?;
    if !output.is_empty() {
        rehearse()?;
    }
    let written = write(&mut output, size, changes, progress);
    if written.is_err() {
        eprintln!(
            "thinctl: {} holds a part of the volume only; the whole of it is written anew the next time",
            path.display()
        );
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
    let (path, there, wanted) = (path.display(), device.size, header.size);
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

/// Writes all of it.
fn write(
    output: &mut Output,
    size: u64,
    changes: &mut dyn Changes,
    mut progress: impl FnMut(u64),
) -> Result {
    output.give_up_old(size)?;
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

/// Where it is written to.
enum Output {
    /// A thin volume.
    Thin {
        target: Box<Target>,
        /// Whether something else than zeroes is read where nothing is mapped.
        has_origin: bool,
        /// Whether nothing is mapped, and zeroes are read.
        is_empty: bool,
    },
    /// Another device.
    Other(Device, Buffer),
}

impl Output {
    /// Finds out what `device`, which this process has opened exclusively, is.
    fn new(
        path: &Path,
        device: Device,
        number: Number,
        header: &Header,
        anyway: bool,
    ) -> Result<Self> {
        let dm = Arc::new(Dm::new()?);
        let Some(name) = dm.name(number)? else {
            return Ok(Self::Other(device, Buffer::new()));
        };
        check_unused(&dm, path, &name)?;
        let Some((pool, volume)) = ActiveVolume::find(&dm, &name)? else {
            check_no_pool(&dm, path, number)?;
            return Ok(Self::Other(device, Buffer::new()));
        };
        pool.check_writable(&dm)?;
        let room = Room::of(dm.clone(), pool.clone(), anyway);
        let has_origin = volume.origin.is_some();
        let mapped = volume.mapped(&dm)?;
        // What is mapped is given up, unless it must hide an origin.
        let given_up = if has_origin { 0 } else { mapped };
        room.check_over(header.data, given_up)?;
        let mut target = Target::over(device, &pool, room)?;
        if has_origin {
            target.hides_origin();
        }
        Ok(Self::Thin {
            target: Box::new(target),
            has_origin,
            is_empty: mapped == 0 && !has_origin,
        })
    }

    /// Whether nothing is lost when it is written to.
    fn is_empty(&self) -> bool {
        matches!(self, Self::Thin { is_empty: true, .. })
    }

    /// Unmaps the old content, so that there is room for the new one.
    fn give_up_old(&mut self, size: u64) -> Result {
        match self {
            Self::Thin {
                target,
                has_origin: false,
                ..
            } => for_pieces(0, size, |offset, len| target.unmap(offset, len)),
            Self::Thin { .. } | Self::Other(..) => Ok(()),
        }
    }

    fn write(&mut self, mut offset: u64, data: &[u8]) -> Result {
        let (device, buffer) = match self {
            Self::Thin { target, .. } => return target.write(offset, data),
            Self::Other(device, buffer) => (device, buffer),
        };
        for part in data.chunks(CHUNK) {
            let aligned = buffer.get(part.len());
            aligned.copy_from_slice(part);
            device.write(offset, aligned)?;
            offset = offset.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    /// Makes sure that zeroes are read from `begin` to `end`.
    fn zero(&mut self, begin: u64, end: u64) -> Result {
        for_pieces(begin, end, |offset, len| match self {
            Self::Thin { target, .. } => target.discard(offset, len),
            Self::Other(device, _) => device.zero(offset, len),
        })
    }

    fn flush(&self) -> Result {
        match self {
            Self::Thin { target, .. } => target.flush(),
            Self::Other(device, _) => device.flush(),
        }
    }
}

/// Calls `f` for pieces that end at multiples of [`PIECE`], which are multiples of the size of blocks if that is a power of
/// two.
fn for_pieces(mut begin: u64, end: u64, mut f: impl FnMut(u64, u64) -> Result) -> Result {
    while begin < end {
        signals::check()?;
        let next = begin
            .saturating_add(PIECE.saturating_sub(begin % PIECE))
            .min(end);
        f(begin, next.saturating_sub(begin))?;
        begin = next;
    }
    Ok(())
}

/// Gives an error if a device that this process has opened exclusively is used otherwise, or is not for writing to.
pub fn check_free(dm: &Dm, path: &Path, number: Number) -> Result {
    match dm.name(number)? {
        None => Ok(()),
        Some(name) => {
            check_unused(dm, path, &name)?;
            check_no_pool(dm, path, number)
        }
    }
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

/// Gives an error if a device is a pool, or lies on one without being a volume of it: its blocks are those of all volumes.
fn check_no_pool(dm: &Dm, path: &Path, number: Number) -> Result {
    let mut left = vec![number];
    while let Some(number) = left.pop() {
        let Some(name) = dm.name(number)? else {
            continue;
        };
        let table = dm.table(&name)?;
        if table.iter().any(|line| line.target == "thin-pool") {
            return Err(Error::Refused(format!(
                "{} is pool {name}, and not a volume of it",
                path.display()
            )));
        }
        if table.iter().all(|line| line.target != "thin") {
            left.extend(dm.below(&name)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateId;

    #[test]
    fn pieces_have_all_of_it() -> Result {
        for (begin, end) in [(0, 0), (5, 5), (7, 3 * PIECE + 1), (PIECE, 2 * PIECE)] {
            let mut next = begin;
            for_pieces(begin, end, |offset, len| {
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
