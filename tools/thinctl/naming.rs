// SPDX-License-Identifier: GPL-2.0

//! Which state a volume is in, as far as the metadata tell.
//!
//! The mappings of a volume say what it contains as long as none of its blocks can be overwritten in place, that is, if
//! all of them are older than the last snapshot that the volume was part of: the first write to such a block gives it
//! another mapping, and no mapping comes again with another content. Such a volume is called frozen here. A snapshot is
//! frozen until it is written to. So the state of a frozen volume is named by a digest of its mappings, together with a
//! random name for the pool.
//!
//! What was received has the name that it had where it came from. It is remembered together with the digest here.

use serde::{
    Deserialize,
    Serialize, //
};

use persistent_data::block_manager::BlockManager;
use thin_metadata::{
    DeviceId,
    View, //
};

use crate::{
    error::{
        Error,
        Result, //
    },
    home::Home,
    identity::Identity,
    session::Session,
    signals,
    state::StateId,
    walk::try_walk, //
};

/// What the metadata say of a volume.
#[derive(Clone, Copy, Debug)]
pub struct Contents {
    /// The name of its state, from wherever that is known.
    pub state: StateId,
    /// The name of its state in this pool.
    pub digest: StateId,
    /// Whether it cannot be overwritten in place.
    pub frozen: bool,
    /// The block after the highest one that is mapped.
    pub end: u64,
}

impl Contents {
    /// Whether the volume is in `state`, and stays so.
    pub fn is(&self, state: StateId) -> bool {
        self.frozen && self.state == state
    }

    /// Whether the volume is in `state`, by any of its names, and stays so. Volumes without any mapping look the same here,
    /// whatever they were called where they came from.
    pub fn is_named(&self, session: &Session, state: StateId) -> Result<bool> {
        if !self.frozen {
            return Ok(false);
        }
        let received: Received = session.home.load(FILE)?.unwrap_or_default();
        let is_known = [self.state, self.digest].contains(&state)
            || received
                .volumes
                .iter()
                .any(|volume| volume.digest == self.digest && volume.state == state);
        Ok(is_known)
    }
}

/// The states of volumes that were received.
#[derive(Default, Serialize, Deserialize)]
pub struct Received {
    volumes: Vec<ReceivedVolume>,
}

#[derive(Serialize, Deserialize)]
struct ReceivedVolume {
    id: u32,
    state: StateId,
    digest: StateId,
}

const FILE: &str = "states.json";

impl Received {
    /// Remembers that volume `id` is in `state`, and looks as `digest` says.
    pub fn note(home: &Home, id: u32, state: StateId, digest: StateId) -> Result {
        home.update(FILE, |received: &mut Self| {
            received.volumes.retain(|volume| volume.id != id);
            received.volumes.push(ReceivedVolume { id, state, digest });
            Ok(())
        })
    }

    /// The name of the state of a volume with this digest: the one that volume `id` has, or else any.
    fn find(&self, id: u32, digest: StateId) -> Option<StateId> {
        // A snapshot of what was received is in the same state.
        let known = self.volumes.iter().filter(|volume| volume.digest == digest);
        let known = known.min_by_key(|volume| volume.id != id);
        known.map(|volume| volume.state)
    }
}

/// A device id of the library.
pub fn device_id(id: u32) -> Result<DeviceId> {
    Ok(DeviceId::try_from(u64::from(id))?)
}

/// Whether volume `id`, which may be in use, contains what `snapshot` does. No snapshot is taken for that, as there is an
/// end to the number of those.
pub fn is_unchanged(session: &Session, id: u32, snapshot: u32) -> Result<bool> {
    let in_use = !session.active(id)?.is_empty();
    let are_alike = || -> Result<bool> {
        let snap = session.metadata_snap()?;
        let view = snap.view()?;
        let now = contents(session, &view, id)?;
        Ok(now.frozen && now.digest == contents(session, &view, snapshot)?.digest)
    };
    let alike = are_alike()?;
    if !alike || !in_use {
        return Ok(alike);
    }
    // What its users have written may not have reached it yet.
    session.settle(id)?;
    are_alike()
}

/// What the metadata say of volume `id`, if there is one.
pub fn find<B: BlockManager>(
    session: &Session,
    view: &View<'_, B>,
    id: u32,
) -> Result<Option<Contents>> {
    match contents(session, view, id) {
        Ok(found) => Ok(Some(found)),
        Err(Error::NotFound(_)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// What the metadata say of volume `id`.
pub fn contents<B: BlockManager>(
    session: &Session,
    view: &View<'_, B>,
    id: u32,
) -> Result<Contents> {
    let device = device_id(id)?;
    let details = view.device(device)?.ok_or_else(|| session.no_volume(id))?;
    let snapshotted = details.snapshotted_time.get();

    let mut hasher = blake3::Hasher::new_derive_key("thinctl 1: state of a thin volume");
    hasher.update(Identity::name(&session.home)?.as_bytes());
    hasher.update(&session.pool.block_size.to_le_bytes());
    let mut frozen = true;
    let mut end = 0u64;
    let mut entries = 0u32;
    try_walk(|visit| {
        view.for_mappings(device, |block, mapping| {
            hasher.update(&block.to_le_bytes());
            hasher.update(&mapping.to_word().to_le_bytes());
            frozen &= mapping.time() < snapshotted;
            end = block.saturating_add(1);
            entries = entries.wrapping_add(1);
            visit(match entries.is_multiple_of(1 << 16) {
                true => signals::check(),
                false => Ok(()),
            })
        })
    })?;

    let digest = StateId::new(*hasher.finalize().as_bytes());
    let received: Received = session.home.load(FILE)?.unwrap_or_default();
    Ok(Contents {
        state: received.find(id, digest).unwrap_or(digest),
        digest,
        frozen,
        end,
    })
}
