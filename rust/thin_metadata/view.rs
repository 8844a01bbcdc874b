// SPDX-License-Identifier: GPL-2.0

//! A view of metadata that only reads: for tools, and for metadata snapshots of a live pool.

use persistent_data::{
    block::BlockNr,
    block_manager::BlockManager, //
};

use crate::{
    device::DeviceId,
    error::{
        Error,
        Result, //
    },
    format::{
        BlockTime,
        DetailsTree,
        DeviceDetails,
        DeviceTree,
        MappingTree,
        Superblock,
        TopTree,
        SUPERBLOCK_LOCATION, //
    },
    mapping::VirtualBlock, //
};

/// What one superblock leads to.
pub struct View<'b, B: BlockManager> {
    bm: &'b B,
    superblock: Superblock,
}

impl<'b, B: BlockManager> View<'b, B> {
    /// The metadata of the last commit.
    pub fn new(bm: &'b B) -> Result<Self> {
        Self::at(bm, SUPERBLOCK_LOCATION)
    }

    /// The metadata whose superblock is at `location`, for instance that of a metadata snapshot, which the
    /// pool's status tells.
    pub fn at(bm: &'b B, location: BlockNr) -> Result<Self> {
        let superblock = Superblock::read(bm, location)?;
        superblock.check_format(true)?;
        superblock.check_roots(bm.nr_blocks())?;
        Ok(Self { bm, superblock })
    }

    /// The metadata snapshot, if there is one.
    pub fn metadata_snap(&self) -> Result<Option<Self>> {
        match self.superblock.held_root.get() {
            0 => Ok(None),
            block => Ok(Some(Self::at(self.bm, block)?)),
        }
    }

    /// Where it is read.
    pub fn bm(&self) -> &'b B {
        self.bm
    }

    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The tree of all mappings.
    pub fn mapping_tree(&self) -> MappingTree {
        MappingTree::from_root(self.superblock.data_mapping_root.get())
    }

    /// The tree of all devices' details.
    pub fn details_tree(&self) -> DetailsTree {
        DetailsTree::from_root(self.superblock.device_details_root.get())
    }

    /// The details of a device; `None` if there is none of this id.
    pub fn device(&self, id: DeviceId) -> Result<Option<DeviceDetails>> {
        Ok(self.details_tree().lookup(self.bm, &[id.key()])?)
    }

    /// Calls `f` with each device, in the order of ids, until it fails.
    pub fn for_devices(&self, mut f: impl FnMut(DeviceId, DeviceDetails) -> Result) -> Result {
        let tree = self.details_tree();
        walk(|visit| {
            tree.walk(self.bm, &mut |&[key], details| {
                visit(&mut || f(DeviceId::try_from(key)?, *details))
            })
        })
    }

    /// Where a virtual block of a device is, and since when; `None` if it is not mapped, or there is no such
    /// device.
    pub fn mapping(&self, id: DeviceId, block: VirtualBlock) -> Result<Option<BlockTime>> {
        Ok(self.mapping_tree().lookup(self.bm, &[id.key(), block])?)
    }

    /// The tree of a device's mappings.
    pub fn device_tree(&self, id: DeviceId) -> Result<DeviceTree> {
        let top = TopTree::from_root(self.superblock.data_mapping_root.get());
        match top.lookup(self.bm, &[id.key()])? {
            Some(root) => Ok(DeviceTree::from_root(root.get())),
            None => Err(Error::NoDevice(id)),
        }
    }

    /// Calls `f` with each mapping of a device, in the order of virtual blocks, until it fails.
    pub fn for_mappings(
        &self,
        id: DeviceId,
        mut f: impl FnMut(VirtualBlock, BlockTime) -> Result,
    ) -> Result {
        let tree = self.device_tree(id)?;
        walk(|visit| {
            tree.walk(self.bm, &mut |&[block], value| {
                visit(&mut || f(block, *value))
            })
        })
    }
}

type Visit<'a> = &'a mut dyn FnMut(&mut dyn FnMut() -> Result) -> persistent_data::Result;

/// Runs a walk of the library, whose callbacks have errors of the library, with callbacks that have errors of
/// this crate.
pub(crate) fn walk(f: impl FnOnce(Visit<'_>) -> persistent_data::Result) -> Result {
    let mut failed = None;
    let result = f(&mut |visit| {
        visit().map_err(|e| {
            failed = Some(e);
            persistent_data::Error::Invalid
        })
    });
    match failed {
        Some(e) => Err(e),
        None => Ok(result?),
    }
}
