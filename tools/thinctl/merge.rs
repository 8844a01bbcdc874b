// SPDX-License-Identifier: GPL-2.0

//! Writing what a thin volume has of its own into its external origin.

use std::path::Path;

use rustix::io::Errno;
use serde::{
    Deserialize,
    Serialize, //
};

use crate::{
    copy::{
        data_bytes,
        for_chunks,
        CHECKPOINT, //
    },
    device::{
        Buffer,
        Device, //
    },
    error::{
        Error,
        Result, //
    },
    home::Home,
    kept::{
        Kept,
        Owner, //
    },
    naming::contents,
    send::{
        differences,
        Source, //
    },
    session::Session,
};

/// A merge that is going on.
#[derive(Serialize, Deserialize)]
struct Merge {
    /// A snapshot of the volume, so that all of what is written is of one moment.
    snapshot: u32,
    /// Where to.
    into: String,
    /// Below this offset, in bytes, all is stable.
    offset: u64,
}

/// What a merge has done.
#[derive(Debug, Serialize)]
pub struct Merged {
    /// How many bytes were written in this run.
    pub written: u64,
    /// Where this run went on, in bytes; 0 if it began the merge.
    pub resumed_at: u64,
}

/// Writes all that is mapped in volume `id` to the device `into`, at the same offsets. If it is cut off, the next call
/// goes on. `progress` is told of how much there is to do, and of each piece of data.
pub fn merge(
    session: &Session,
    id: u32,
    into: &Path,
    mut progress: impl FnMut(Option<u64>, u64),
) -> Result<Merged> {
    let file = format!("merge-{id}.json");
    let _lock = session
        .home
        .try_lock(&format!("merge-{id}.lock"))?
        .ok_or_else(|| Error::Busy(format!("another thinctl is merging volume {id}")))?;
    let device = match Device::open_exclusively(into) {
        Err(e) if e.errno() == Some(Errno::BUSY) => {
            return Err(Error::Busy(format!(
            "{} is in use: unmount it, and deactivate the volumes that have it as external origin",
            into.display()
        )))
        }
        result => result?,
    };
    let into = into
        .canonicalize()
        .map_err(Error::io(into.display()))?
        .display()
        .to_string();

    let mut merge = match session.home.load::<Merge>(&file)? {
        Some(merge) if merge.into != into => {
            return Err(Error::Refused(format!(
                "a merge of volume {id} into {} is not finished",
                merge.into
            )))
        }
        Some(merge) if session.exists(merge.snapshot)? => merge,
        _ => {
            let merge = Merge {
                snapshot: session.snapshot(id)?,
                into,
                offset: 0,
            };
            session.keep(merge.snapshot, || session.home.store(&file, &merge))?;
            merge
        }
    };

    let snap = session.metadata_snap()?;
    let view = snap.view()?;
    let end = contents(session, &view, merge.snapshot)?.end;
    let mut extents = differences(session, &view, None, merge.snapshot)?;
    snap.release()?;
    let block_size = session.pool.block_size;
    let size = end.saturating_mul(block_size);
    if size.saturating_sub(device.size) >= block_size {
        let merged = abandon(session, &file, &merge);
        return merged.and(Err(Error::Refused(format!(
            "volume {id} has data up to byte {size}, and {} has {} bytes only",
            merge.into, device.size
        ))));
    }
    let size = size.min(device.size);

    let resumed_at = merge.offset;
    let total = data_bytes(&mut extents, block_size, resumed_at, size)?;
    progress(Some(total), 0);
    let source = Source::open(session, merge.snapshot, size)?;
    let mut buffer = Buffer::new();
    let mut unsaved = 0u64;
    for_chunks(&mut extents, block_size, resumed_at, size, |chunk| {
        let data = buffer.get(chunk.len as usize);
        source.device().read(chunk.offset, data)?;
        device.write(chunk.offset, data)?;
        progress(None, chunk.len);
        unsaved = unsaved.saturating_add(chunk.len);
        if unsaved >= CHECKPOINT {
            device.flush()?;
            merge.offset = chunk.offset.saturating_add(chunk.len);
            session.home.store(&file, &merge)?;
            unsaved = 0;
        }
        Ok(())
    })?;
    device.flush()?;
    drop(source);
    abandon(session, &file, &merge)?;
    Ok(Merged {
        written: total,
        resumed_at,
    })
}

/// Forgets a merge.
fn abandon(session: &Session, file: &str, merge: &Merge) -> Result {
    session.delete(merge.snapshot)?;
    session.home.remove(file)
}

/// The snapshots that merges read which are not finished.
pub fn kept(home: &Home) -> Result<Vec<Kept>> {
    let mut found = Vec::new();
    for id in home.list("merge-", ".json")? {
        let merge = home.load::<Merge>(&format!("merge-{id}.json"))?;
        if let (Some(merge), Ok(volume)) = (merge, id.parse()) {
            found.push(Kept {
                id: merge.snapshot,
                volume,
                owner: Owner::Merge,
                place: merge.into,
            });
        }
    }
    Ok(found)
}
