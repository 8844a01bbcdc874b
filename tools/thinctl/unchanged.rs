// SPDX-License-Identifier: GPL-2.0

//! Whether a volume is what it was, and deleting it only if it is.
//!
//! Anybody may activate a volume, write to it and deactivate it, at any time at which thinctl does not look; and what is
//! deleted does not come again. So what a deletion relies on is looked at right before it: nothing but one look at the
//! metadata lies in between, however large the volume is.

use persistent_data::block_manager::BlockManager;
use thin_metadata::View;

use crate::{
    error::{
        Error,
        Result, //
    },
    naming::{
        contents,
        device_id, //
    },
    session::Session,
    state::StateId, //
};

/// Whether volume `id` contains what it did when `snapshot` was taken of it, which nobody has written to.
///
/// Blocks of a snapshot are not used for anything else as long as it exists. So both contain the same if they are mapped
/// to the same blocks; that nothing is different is seen at the roots of their trees.
pub fn is_unchanged<B: BlockManager>(view: &View<'_, B>, snapshot: u32, id: u32) -> Result<bool> {
    let (snapshot, id) = (device_id(snapshot)?, device_id(id)?);
    if view.device(snapshot)?.is_none() || view.device(id)?.is_none() {
        return Ok(false);
    }
    let mut differs = false;
    let walked = view.diff(snapshot, id, |_, _, _| {
        differs = true;
        // The first difference is enough.
        Err(thin_metadata::Error::NoDevice(id))
    });
    if differs {
        return Ok(false);
    }
    walked?;
    Ok(true)
}

/// Whether volume `id` has blocks of volume `source`, which maps `mapped`; if that maps none, there is nothing to have.
pub fn has_part_of<B: BlockManager>(
    view: &View<'_, B>,
    source: u32,
    id: u32,
    mapped: u64,
) -> Result<bool> {
    let mut others = 0u64;
    view.diff(device_id(source)?, device_id(id)?, |_, before, _| {
        others = others.saturating_add(u64::from(before.is_some()));
        Ok(())
    })?;
    Ok(mapped == 0 || others < mapped)
}

/// Deletes volume `id` if nobody uses it, and it is as it was when `snapshot` was taken of it; says whether it is.
pub fn delete_unchanged(session: &Session, snapshot: u32, id: u32) -> Result<bool> {
    let (_turn, _slot) = session.turn_with_slot(id)?;
    session.check_inactive(id)?;
    session.glance_and_do(
        |view| is_unchanged(view, snapshot, id),
        // Fails if it has become active.
        || session.delete(id),
    )
}

/// Deletes volume `id` if nobody uses it, and its digest is still the one that it had while it was frozen; says whether
/// it is.
pub fn delete_with_digest(session: &Session, digest: StateId, id: u32) -> Result<bool> {
    session.check_inactive(id)?;
    // A digest takes long. It is that of a snapshot, so that the last look need not.
    let snapshot = session.snapshot(id)?;
    let snap = session.metadata_snap()?;
    let then = contents(session, &snap.view()?, snapshot)?;
    snap.release()?;
    let deleted = then.digest == digest && delete_unchanged(session, snapshot, id)?;
    session.delete(snapshot)?;
    Ok(deleted)
}

/// The error of a volume that is not what it was.
pub fn changed(session: &Session, id: u32, since: &str, what_now: &str) -> Error {
    Error::Refused(format!(
        "volume {id} of pool {} was written to since {since}; {what_now}",
        session.pool.name
    ))
}
