// SPDX-License-Identifier: GPL-2.0

//! Which data blocks are in use, by one volume or by several.

use persistent_data::block_manager::BlockManager;
use thin_metadata::{
    format::BlockTime,
    DeviceId,
    View, //
};

use crate::{
    bits::Bits,
    error::Result,
    walk::try_walk, //
};

/// Which data blocks the volumes of a view use.
///
/// It takes two bits for each data block and three for each metadata block, whatever the number of volumes. What
/// several volumes share for sure, because their trees do, is read once: first the upper parts of all trees are gone
/// through to count the ways to each node; a node to which there are two ways is not counted further. Then each leaf is
/// read. Mappings of a leaf to which there are several ways belong to several volumes.
pub struct Census {
    used: Bits,
    shared: Bits,
    /// Nodes that belong to several volumes.
    common: Bits,
    devices: Vec<DeviceId>,
}

impl Census {
    /// Counts all volumes of `view`, whose pool has `nr_data_blocks`.
    pub fn take<B: BlockManager>(view: &View<'_, B>, nr_data_blocks: u64) -> Result<Self> {
        let mut devices = Vec::new();
        view.for_devices(|id, _| {
            devices.push(id);
            Ok(())
        })?;
        let nr_nodes = view.bm().nr_blocks();
        let mut census = Self {
            used: Bits::new(nr_data_blocks)?,
            shared: Bits::new(nr_data_blocks)?,
            common: Bits::new(nr_nodes)?,
            devices,
        };
        census.find_common_nodes(view)?;
        census.find_shared_blocks(view)?;
        Ok(census)
    }

    fn find_common_nodes<B: BlockManager>(&mut self, view: &View<'_, B>) -> Result {
        let mut seen = Bits::new(view.bm().nr_blocks())?;
        for device in &self.devices {
            view.device_tree(*device)?.visit(
                view.bm(),
                &mut |node, height| {
                    // Below a node that is common, all are: so it is gone into a second time, but not again.
                    let is_wanted = node >= seen.len() || seen.add(node) || self.common.add(node);
                    is_wanted && height > 0
                },
                &mut |_, _, _| Ok(()),
            )?;
        }
        Ok(())
    }

    fn find_shared_blocks<B: BlockManager>(&mut self, view: &View<'_, B>) -> Result {
        let Self {
            used,
            shared,
            common,
            devices,
        } = self;
        let mut seen = Bits::new(view.bm().nr_blocks())?;
        for &device in devices.iter() {
            let tree = view.device_tree(device)?;
            let mut count = |leaf, virtual_block, value: BlockTime| -> Result {
                let data_block = value.block();
                if data_block >= used.len() {
                    let bad = thin_metadata::Error::BadMapping {
                        device,
                        virtual_block,
                        data_block,
                    };
                    return Err(bad.into());
                }
                if !used.add(data_block) || common.has(leaf) {
                    shared.add(data_block);
                }
                Ok(())
            };
            try_walk(|visit| {
                tree.visit(
                    view.bm(),
                    // Whoever reads what is beyond the device is told.
                    &mut |node, _| node >= seen.len() || seen.add(node),
                    &mut |leaf, virtual_block, value| visit(count(leaf, virtual_block, value)),
                )
            })?;
        }
        Ok(())
    }

    /// The volumes, in the order of their ids.
    pub fn devices(&self) -> &[DeviceId] {
        &self.devices
    }

    /// How many data blocks the pool has.
    pub fn nr_data_blocks(&self) -> u64 {
        self.used.len()
    }

    /// The data blocks that a volume uses.
    pub fn used(&self) -> &Bits {
        &self.used
    }

    /// The data blocks that several volumes use.
    pub fn shared(&self) -> &Bits {
        &self.shared
    }

    /// Calls `f` with each virtual block of `device` whose data block no other volume uses, and with the data block.
    pub fn for_exclusive<B: BlockManager>(
        &self,
        view: &View<'_, B>,
        device: DeviceId,
        mut f: impl FnMut(u64, u64),
    ) -> Result {
        view.device_tree(device)?.visit(
            view.bm(),
            &mut |node, _| !self.common.has(node),
            &mut |_, virtual_block, value: BlockTime| {
                if !self.shared.has(value.block()) {
                    f(virtual_block, value.block());
                }
                Ok(())
            },
        )?;
        Ok(())
    }
}
