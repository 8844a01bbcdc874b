// SPDX-License-Identifier: GPL-2.0

//! What two devices of one view differ in.

use persistent_data::block_manager::BlockManager;

use crate::{
    device::DeviceId,
    error::Result,
    format::{
        BlockTime,
        DeviceTree, //
    },
    mapping::VirtualBlock,
    view::{
        walk,
        View, //
    },
};

/// What a virtual block is mapped to in two devices.
type Visit<'a> = &'a mut dyn FnMut(
    VirtualBlock,
    Option<BlockTime>,
    Option<BlockTime>,
) -> persistent_data::Result;

impl<B: BlockManager> View<'_, B> {
    /// Calls `f` with each virtual block that two devices do not map to the same data block, and what they map it to, in
    /// ascending order, until it fails.
    ///
    /// What is mapped to the same data block is the same, as data blocks that are shared are not written to. It takes
    /// as long as there are differences: what the devices share for sure is not read.
    pub fn diff(
        &self,
        left: DeviceId,
        right: DeviceId,
        f: impl FnMut(VirtualBlock, Option<BlockTime>, Option<BlockTime>) -> Result,
    ) -> Result {
        self.both(left, right, f, |left, right, f| {
            left.diff(&right, self.bm(), |a, b| a.block() == b.block(), f)
        })
    }

    /// As [`diff`](Self::diff), but calls `f` with each virtual block that one of the devices maps.
    pub fn merge(
        &self,
        left: DeviceId,
        right: DeviceId,
        f: impl FnMut(VirtualBlock, Option<BlockTime>, Option<BlockTime>) -> Result,
    ) -> Result {
        self.both(left, right, f, |left, right, f| {
            left.merge(&right, self.bm(), f)
        })
    }

    fn both(
        &self,
        left: DeviceId,
        right: DeviceId,
        mut f: impl FnMut(VirtualBlock, Option<BlockTime>, Option<BlockTime>) -> Result,
        run: impl FnOnce(DeviceTree, DeviceTree, Visit<'_>) -> persistent_data::Result,
    ) -> Result {
        let (left, right) = (self.device_tree(left)?, self.device_tree(right)?);
        walk(|visit| {
            run(left, right, &mut |block, a, b| {
                visit(&mut || f(block, a, b))
            })
        })
    }
}
