// SPDX-License-Identifier: GPL-2.0

//! What volumes are snapshots of, as far as this can be known.
//!
//! The metadata do not say it. But each snapshot moves the pool's clock on, and its time becomes the creation time of
//! the snapshot, and the snapshotted time of both. And what a volume maps is not older than itself, unless it was
//! created as a snapshot.

use std::{
    collections::{
        BTreeMap,
        BTreeSet, //
    },
    fmt,
    ops::ControlFlow,
};

use persistent_data::block_manager::BlockManager;
use serde::Serialize;
use thin_metadata::{
    format::DeviceDetails,
    DeviceId,
    View, //
};

use crate::{
    error::Result,
    walk::walk, //
};

/// What a volume is a snapshot of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Relation {
    /// Of nothing: it was created empty.
    Volume,
    /// Of that volume.
    SnapshotOf {
        /// Its id.
        origin: u64,
    },
    /// Of a volume that was deleted, or was part of a snapshot again since.
    Snapshot,
    /// It may be a volume of its own, or a snapshot that has nothing left of its origin.
    Unknown {
        /// What it would be a snapshot of.
        origin: Option<u64>,
    },
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume => f.write_str("-"),
            Self::SnapshotOf { origin } => write!(f, "{origin}"),
            Self::Snapshot => f.write_str("unknown volume"),
            Self::Unknown {
                origin: Some(origin),
            } => write!(f, "maybe {origin}"),
            Self::Unknown { origin: None } => f.write_str("unknown"),
        }
    }
}

/// What each of `devices`, which are all of the view, is a snapshot of.
pub fn relations<B: BlockManager>(
    view: &View<'_, B>,
    devices: &[(DeviceId, DeviceDetails)],
) -> Result<Vec<Relation>> {
    // By the time of a snapshot: its origin, which was there before and was not part of another one since.
    let mut origins = BTreeMap::new();
    // The times of snapshots that are still there.
    let mut snapshots = BTreeSet::new();
    let mut are_older = Vec::new();
    for (id, details) in devices {
        let created = details.creation_time.get();
        let snapshotted = details.snapshotted_time.get();
        if created < snapshotted {
            origins.insert(snapshotted, u64::from(*id));
        }
        // There are no snapshots of time 0.
        let is_older = created > 0 && maps_what_is_older(view, *id, created)?;
        if is_older {
            snapshots.insert(created);
        }
        are_older.push(is_older);
    }
    let relation = |((_, details), is_older): (&(DeviceId, DeviceDetails), bool)| {
        let created = details.creation_time.get();
        let origin = origins.get(&created).copied();
        match (is_older, origin) {
            (true, Some(origin)) => Relation::SnapshotOf { origin },
            (true, None) => Relation::Snapshot,
            // There is one snapshot of each time at most.
            _ if created == 0 || snapshots.contains(&created) => Relation::Volume,
            (false, origin) => Relation::Unknown { origin },
        }
    };
    Ok(devices.iter().zip(are_older).map(relation).collect())
}

/// Whether `id` has a mapping from before `time`.
fn maps_what_is_older<B: BlockManager>(
    view: &View<'_, B>,
    id: DeviceId,
    time: u32,
) -> Result<bool> {
    let flow = walk(|visit| {
        view.for_mappings(id, |_, value| {
            visit(match value.time() < time {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        })
    })?;
    Ok(flow.is_break())
}
