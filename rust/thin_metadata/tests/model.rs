// SPDX-License-Identifier: GPL-2.0

//! A model of a pool in memory.

use std::collections::{
    BTreeMap,
    BTreeSet, //
};

use crate::DeviceId;

/// A device and its mappings.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Device {
    /// How many blocks are mapped.
    pub mapped_blocks: u64,
    /// The pool's transaction id when it was created.
    pub transaction_id: u64,
    /// The time when it was created.
    pub creation_time: u32,
    /// The time when it was last part of a snapshot.
    pub snapshotted_time: u32,
    /// Virtual block → data block and time.
    pub mappings: BTreeMap<u64, (u64, u32)>,
}

/// What a superblock leads to.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Pool {
    /// How many snapshots have been taken.
    pub time: u32,
    /// The transaction id.
    pub transaction_id: u64,
    /// The size of the data device in blocks; a metadata snapshot does not know it.
    pub nr_data: u64,
    /// The devices by their ids.
    pub devices: BTreeMap<u64, Device>,
}

impl Pool {
    /// What a metadata snapshot that is taken now keeps: it has no space maps, and so does not know the size of the data
    /// device.
    pub fn held(&self) -> Option<Self> {
        Some(Self {
            nr_data: 0,
            ..self.clone()
        })
    }

    fn count_references(&self, counts: &mut BTreeMap<u64, u32>) {
        for device in self.devices.values() {
            for (block, _) in device.mappings.values() {
                *counts.entry(*block).or_default() += 1;
            }
        }
    }
}

/// A pool and its metadata snapshot.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Model {
    /// What the superblock leads to.
    pub pool: Pool,
    /// What the metadata snapshot's superblock leads to.
    pub held: Option<Pool>,
}

/// A device's id.
pub fn id(id: u64) -> DeviceId {
    DeviceId::try_from(id).expect("a small id")
}

impl Model {
    /// A pool without devices.
    pub fn new(nr_data: u64) -> Self {
        Self {
            pool: Pool {
                nr_data,
                ..Pool::default()
            },
            held: None,
        }
    }

    /// Adds a device.
    pub fn create(&mut self, id: u64) {
        let device = Device {
            transaction_id: self.pool.transaction_id,
            creation_time: self.pool.time,
            snapshotted_time: self.pool.time,
            ..Device::default()
        };
        assert!(self.pool.devices.insert(id, device).is_none());
    }

    /// Adds a snapshot of `origin`.
    pub fn snap(&mut self, id: u64, origin: u64) {
        self.pool.time += 1;
        let time = self.pool.time;
        let transaction_id = self.pool.transaction_id;
        let origin = self.device(origin);
        origin.snapshotted_time = time;
        let snap = Device {
            transaction_id,
            creation_time: time,
            ..origin.clone()
        };
        assert!(self.pool.devices.insert(id, snap).is_none());
    }

    /// A device that exists.
    pub fn device(&mut self, id: u64) -> &mut Device {
        self.pool.devices.get_mut(&id).expect("the device exists")
    }

    /// Maps a block.
    pub fn insert(&mut self, id: u64, virtual_block: u64, block: u64) {
        let time = self.pool.time;
        let device = self.device(id);
        device.mappings.insert(virtual_block, (block, time));
        device.mapped_blocks = device.mappings.len() as u64;
    }

    /// Removes the mappings of `begin..end`.
    pub fn remove(&mut self, id: u64, begin: u64, end: u64) {
        let device = self.device(id);
        device.mappings.retain(|b, _| *b < begin || *b >= end);
        device.mapped_blocks = device.mappings.len() as u64;
    }

    /// How many devices, with those of the metadata snapshot, map to each data block in use.
    pub fn references(&self) -> BTreeMap<u64, u32> {
        let mut counts = BTreeMap::new();
        self.pool.count_references(&mut counts);
        if let Some(held) = &self.held {
            held.count_references(&mut counts);
        }
        counts
    }

    /// The data blocks that are mapped.
    pub fn used(&self) -> BTreeSet<u64> {
        self.references().into_keys().collect()
    }
}
