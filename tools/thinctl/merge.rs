// SPDX-License-Identifier: GPL-2.0

//! Writing what a thin volume has of its own into its external origin.
//!
//! The origin is held for as long as it takes, the volume is not: a merge that was cut off goes on with the snapshot that
//! it has begun with only if nobody has used the volume since, and the volume is deleted only if that snapshot has all of it.
//!
//! Between two runs, anybody may write to the origin, and after a boot the same words may lead to another device. So each
//! run writes all of it, as long as the volume is there. What happens before the volume is deleted: in the same run, in
//! which nobody else could mount the origin, all of it was written, and flushed.

use std::path::{
    self,
    Path, //
};

use rustix::io::Errno;
use serde::{
    Deserialize,
    Serialize, //
};

use crate::{
    below::Below,
    copy::{
        blocks_of,
        data_bytes,
        for_chunks, //
    },
    device::{
        self,
        Buffer,
        Device, //
    },
    error::{
        Error,
        Result, //
    },
    home::{
        Home,
        Lock, //
    },
    into,
    kept::{
        Kept,
        Owner, //
    },
    lvm2,
    naming::{
        contents,
        device_id, //
    },
    numbering,
    send::{
        differences,
        has_data,
        Source, //
    },
    session::Session,
    unchanged::{
        changed,
        delete_unchanged,
        is_unchanged, //
    },
};

/// A merge that is going on.
#[derive(Serialize, Deserialize)]
struct Merge {
    /// A snapshot of the volume, so that all of what is written is of one moment.
    snapshot: u32,
    /// Where to, in the words that were used: what they lead to is another number after each boot.
    into: String,
    /// The size of that device in bytes.
    size: u64,
    /// Whether all of the snapshot is written, and stable.
    written: bool,
    /// A snapshot of the volume before it was used again, which is of no use any more.
    before: Option<u32>,
    /// When the volume was made, in snapshots of its pool: one that is made under its id later is another one.
    created: u32,
}

impl Merge {
    /// What it keeps.
    fn snapshots(&self) -> impl Iterator<Item = u32> {
        [self.snapshot].into_iter().chain(self.before)
    }

    /// Whether there is another volume under the id by now.
    fn is_of_another(&self, session: &Session, id: u32) -> Result<bool> {
        let created = session.creation_time(id)?;
        Ok(created.is_some_and(|created| created != self.created))
    }
}

fn lock(session: &Session, id: u32) -> Result<Lock> {
    session
        .home
        .try_lock(&format!("merge-{id}.lock"))?
        .ok_or_else(|| Error::Busy(format!("another thinctl is merging volume {id}")))
}

/// What a merge has done.
#[derive(Debug, Serialize)]
pub struct Merged {
    /// How many bytes were written in this run.
    pub written: u64,
}

/// How to merge.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether the volume is deleted afterwards.
    pub delete: bool,
    /// Whether to try it also if there seems to be no room for it in a pool that the device lies on.
    pub anyway: bool,
}

/// Writes all that is mapped in volume `id` to the device `into`, at the same offsets, and then deletes the volume if that
/// is asked for. If it is cut off, the next call goes on. `progress` is told of how much there is to do, and of each piece
/// of data.
pub fn merge(
    session: &Session,
    id: u32,
    path: &Path,
    options: &Options,
    mut progress: impl FnMut(Option<u64>, u64),
) -> Result<Merged> {
    let Options { delete, anyway } = *options;
    if delete {
        lvm2::check_deletes(&session.pool, id)?;
    }
    numbering::check(session)?;
    let file = format!("merge-{id}.json");
    let _lock = lock(session, id)?;
    // Nodes of lvm2's volumes have its names if udev makes them, and the next run may find the others.
    let words = match path.exists() {
        true => path::absolute(path),
        false => Ok(Path::new("/dev").join(path)),
    };
    let words = words.map_err(Error::io(path.display()))?;
    let words = words.display().to_string();
    let path = &device::find(&session.dm, path)?;
    let device = match Device::open_exclusively(path) {
        Err(e) if e.errno() == Some(Errno::BUSY) => {
            return Err(Error::Busy(format!(
            "{} is in use: unmount it, deactivate the volumes that have it as external origin, and whatever else has it",
            path.display()
        )))
        }
        result => result?,
    };
    let below = into::check_free(&session.dm, path, device.number()?)?;
    let below = Below::of(&session.dm, &below, anyway)?;
    // It would have its origin open, which could not be had then.
    let active = session.pool.active_volumes(&session.dm)?;
    if let Some(volume) = active.iter().find(|volume| volume.id == id) {
        return Err(Error::Refused(format!(
            "volume {id} is active as {}, and {} is not its external origin",
            volume.info.name,
            path.display()
        )));
    }

    let mut merge = begin(session, id, words, device.size, &file)?;
    let mut merged = Merged { written: 0 };
    if !merge.written {
        merged.written = write(
            session,
            id,
            &device,
            &file,
            &mut merge,
            &below,
            &mut progress,
        )?;
    }
    if delete && session.exists(id)? && !delete_unchanged(session, merge.snapshot, id)? {
        return Err(changed(
            session,
            id,
            "its merge began",
            "it was not deleted: merge it again",
        ));
    }
    abandon(session, &file, &merge)?;
    // Nobody could use what the volume was merged into until here.
    drop(device);
    Ok(merged)
}

/// Goes on with a merge, or begins one.
fn begin(session: &Session, id: u32, into: String, size: u64, file: &str) -> Result<Merge> {
    let mut known = session.home.load::<Merge>(file)?;
    if let Some(known) = &mut known {
        if (known.into.as_str(), known.size) != (into.as_str(), size) {
            return Err(Error::Refused(format!(
                "a merge of volume {id} into {}, of {} bytes, is not finished, and must go on with that device",
                known.into, known.size
            )));
        }
        if let Some(before) = known.before.take() {
            session.delete(before)?;
        }
        if known.is_of_another(session, id)? {
            if known.written {
                abandon(session, file, known)?;
                return Err(Error::Refused(format!(
                    "the merge of volume {id} into {} that was cut off was as good as done, and is done now; there is another \
                     one of this id since, which the same command would merge",
                    known.into
                )));
            }
            return Err(Error::Refused(format!(
                "volume {id} is another one than the one whose merge into {} is not finished, and of which only volume {} is \
                 left; `thinctl forget {} {}` gives that up",
                known.into, known.snapshot, session.pool.name, known.snapshot
            )));
        }
    }
    let known = match known {
        Some(known) if !session.exists(id)? => {
            // The snapshot has all there is of it, unless all was done but forgetting it.
            if known.written || session.exists(known.snapshot)? {
                return Ok(known);
            }
            session.home.remove(file)?;
            None
        }
        Some(mut known) if session.glance(|view| is_unchanged(view, known.snapshot, id))? => {
            // What the words lead to may be another device now, or was written to.
            if known.written {
                known.written = false;
                session.home.store(file, &known)?;
            }
            return Ok(known);
        }
        known => known,
    };
    if !session.exists(id)? {
        return Err(session.no_volume(id));
    }
    let snapshot = session.snapshot(id)?;
    let created = session.glance(|view| {
        let made = |id| -> Result<_> {
            let there = view.device(device_id(id)?)?;
            Ok(there.map(|there| there.creation_time.get()))
        };
        let (volume, snapshot) = (made(id)?, made(snapshot)?);
        Ok(volume.filter(|volume| snapshot.is_some_and(|snapshot| *volume < snapshot)))
    })?;
    // The snapshot before was of the same volume.
    let before = known.as_ref().map(|known| known.created);
    let created = created.filter(|created| before.is_none_or(|before| before == *created));
    let Some(created) = created else {
        session.delete(snapshot)?;
        return Err(Error::Busy(format!(
            "somebody else has just deleted or made volume {id}"
        )));
    };
    let merge = Merge {
        snapshot,
        into,
        size,
        written: false,
        before: known.map(|known| known.snapshot),
        created,
    };
    session.keep(merge.snapshot, || session.home.store(file, &merge))?;
    if let Some(before) = merge.before {
        session.delete(before)?;
    }
    Ok(merge)
}

/// Writes what is not written yet of a snapshot; says how much that was.
fn write(
    session: &Session,
    id: u32,
    device: &Device,
    file: &str,
    merge: &mut Merge,
    below: &Below,
    progress: &mut dyn FnMut(Option<u64>, u64),
) -> Result<u64> {
    let snap = session.metadata_snap()?;
    let view = snap.view()?;
    let end = contents(session, &view, merge.snapshot)?.end;
    let mut extents = differences(session, &view, None, merge.snapshot)?;
    snap.release()?;
    let block_size = session.pool.block_size;
    let size = end.saturating_mul(block_size);
    let is_beyond = size > device.size
        && (size.saturating_sub(device.size) >= block_size
            || has_data(session, merge.snapshot, device.size..size)?);
    if is_beyond {
        let error = Error::Refused(format!(
            "volume {id} has data up to byte {size}, and {} has {} bytes only",
            merge.into, device.size
        ));
        return Err(refuse(session, id, file, merge, error)?);
    }
    let size = size.min(device.size);
    if let Err(e) = session.pool.check_size(size) {
        return Err(refuse(session, id, file, merge, e)?);
    }

    let total = data_bytes(&mut extents, block_size, 0, size)?;
    progress(Some(total), 0);
    let has_room = below.check_blocks(|block| blocks_of(&mut extents, block_size, size, block));
    if let Err(e) = has_room {
        return Err(refuse(session, id, file, merge, e)?);
    }
    let source = Source::open(session, merge.snapshot, size)?;
    let mut buffer = Buffer::new();
    for_chunks(&mut extents, block_size, 0, size, |chunk| {
        let data = buffer.get(chunk.len as usize);
        source.device().read(chunk.offset, data)?;
        below.check_write(chunk.len)?;
        device.write(chunk.offset, data)?;
        progress(None, chunk.len);
        Ok(())
    })?;
    device.flush()?;
    drop(source);
    merge.written = true;
    session.home.store(file, merge)?;
    Ok(total)
}

/// Gives an error, and forgets the merge, unless its snapshot has all that there is of the volume.
fn refuse(session: &Session, id: u32, file: &str, merge: &Merge, error: Error) -> Result<Error> {
    if session.creation_time(id)? == Some(merge.created) {
        abandon(session, file, merge)?;
    }
    Ok(error)
}

/// Forgets a merge.
fn abandon(session: &Session, file: &str, merge: &Merge) -> Result {
    session.delete(merge.snapshot)?;
    session.home.remove(file)
}

/// Gives up the merge that keeps this snapshot: what was written stays, and so does the volume.
pub fn forget(session: &Session, snapshot: u32) -> Result {
    for id in session.home.list("merge-", ".json")? {
        let Ok(id) = id.parse::<u32>() else {
            continue;
        };
        let file = format!("merge-{id}.json");
        let load = || -> Result<Option<Merge>> {
            let merge = session.home.load::<Merge>(&file)?;
            Ok(merge.filter(|merge| merge.snapshots().any(|id| id == snapshot)))
        };
        if load()?.is_none() {
            continue;
        }
        let _lock = lock(session, id)?;
        // Whoever had it locked before may have gone on.
        let Some(merge) = load()? else {
            continue;
        };
        if !merge.written && !session.exists(id)? {
            return Err(Error::Refused(format!(
                "volume {id} is gone, and nothing else has what was to be written into {}",
                merge.into
            )));
        }
        for kept in merge.snapshots() {
            session.delete(kept)?;
        }
        session.home.remove(&file)?;
    }
    Ok(())
}

/// The snapshots that merges read which are not finished.
pub fn kept(home: &Home) -> Result<Vec<Kept>> {
    let mut found = Vec::new();
    for id in home.list("merge-", ".json")? {
        let merge = home.load::<Merge>(&format!("merge-{id}.json"))?;
        if let (Some(merge), Ok(volume)) = (merge, id.parse()) {
            found.extend(merge.snapshots().map(|id| Kept {
                id,
                volume,
                owner: Owner::Merge,
                place: merge.into.clone(),
            }));
        }
    }
    Ok(found)
}
