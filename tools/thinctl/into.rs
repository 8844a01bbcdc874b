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

mod look;

use std::{
    path::Path,
    sync::Arc, //
};

use rustix::io::Errno;

use crate::{
    below::Below,
    copy::Target,
    cut,
    device::{
        self,
        Buffer,
        Device,
        CHUNK, //
    },
    dm::Dm,
    error::{
        Error,
        Result, //
    },
    session::Session,
    signals,
    stream::{
        Changes,
        Header,
        Record, //
    },
    tell::tell,
};

pub use look::check_free;
use look::{
    in_use,
    with_room,
    Kind,
    Look,
    Place, //
};

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

/// Where it is written to, and whether that was begun.
struct Output {
    to: To,
    is_touched: bool,
}

enum To {
    /// A thin volume, and whether nothing of it is unmapped.
    Thin(Box<Target>, bool),
    /// Another device.
    Other(Device, Buffer, Below),
}

impl Output {
    fn new(device: Device, look: &Look) -> Result<Self> {
        let volume = match &look.kind {
            Kind::Thin(volume) => volume,
            Kind::Other(below) => {
                let to = To::Other(device, Buffer::new(), below.clone());
                return Ok(Self::untouched(to));
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
            below.check_write(part.len() as u64)?;
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
                    below.check_write(len)?;
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
