// SPDX-License-Identifier: GPL-2.0

//! Mappings: from a device's virtual blocks to blocks of the data device.

use core::ops::Range;

use persistent_data::{
    block::BlockNr,
    block_manager::{
        BlockManager,
        Reader, //
    },
    transaction_manager::NonBlocking, //
};

use crate::{
    data_blocks::{
        DataBlocks,
        Freed, //
    },
    device::{
        Device,
        DeviceId,
        Root,
        ThinHandle, //
    },
    error::{
        Error,
        Result, //
    },
    format::{
        BlockTime,
        DeviceTree,
        TopTree,
        MAX_DATA_BLOCKS, //
    },
    metadata::Metadata, //
};

/// The number of a block of the data device.
pub type DataBlock = u64;

/// The number of a block of a thin device.
pub type VirtualBlock = u64;

/// Where a virtual block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The block of the data device.
    pub block: DataBlock,
    /// Whether the block may be in use by another device too: it was mapped before this device was last part
    /// of a snapshot.
    pub shared: bool,
}

/// A run of virtual blocks that are mapped to a run of data blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MappedRange {
    /// The first virtual block.
    pub begin: VirtualBlock,
    /// The first virtual block beyond the run.
    pub end: VirtualBlock,
    /// The data block of the first virtual block.
    pub block: DataBlock,
    /// As [`Mapping::shared`], for all of them.
    pub shared: bool,
}

impl<B: BlockManager> Metadata<B> {
    /// Where `block` of a device is; `None` if it is not mapped.
    ///
    /// Unless `can_block`, what is not in memory gives [`Error::WouldBlock`] and is noted for
    /// [`issue_prefetches`](Self::issue_prefetches).
    pub fn find_block(
        &self,
        thin: &ThinHandle,
        block: VirtualBlock,
        can_block: bool,
    ) -> Result<Option<Mapping>> {
        self.find_block_near(thin, block, can_block, 0..0, |_, _| ())
    }

    /// As [`find_block`](Self::find_block); `near` gets mapped blocks within `window`, `block` itself included, as
    /// far as they were found on the way, in ascending order.
    ///
    /// Whether they may be shared depends on [`snapshotted_time`](Self::snapshotted_time).
    pub fn find_block_near(
        &self,
        thin: &ThinHandle,
        block: VirtualBlock,
        can_block: bool,
        window: Range<VirtualBlock>,
        mut near: impl FnMut(VirtualBlock, BlockTime),
    ) -> Result<Option<Mapping>> {
        self.check_read()?;
        let device = self.devices.get_live(thin)?;
        let near = |block, value: BlockTime| {
            // What is beyond the data device will be an error for whoever asks for it.
            if value.block() < self.data_limit {
                near(block, value);
            }
        };
        let found = if can_block {
            self.device_tree(&self.bm, device)
                .and_then(|tree| Ok(tree.lookup_near(&self.bm, &[block], window, near)?))
        } else {
            let reader = NonBlocking::new(&self.bm, self.tm.prefetches());
            self.device_tree(reader, device)
                .and_then(|tree| Ok(tree.lookup_near(reader, &[block], window, near)?))
        };
        match found {
            Ok(Some(value)) => Ok(Some(self.mapping(device, block, value)?)),
            // Who has no tree has no mappings.
            Ok(None) | Err(Error::NoDevice(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// When a device was last part of a snapshot: its mappings that are older, by [`BlockTime::time`], may be
    /// shared.
    pub fn snapshotted_time(&self, thin: &ThinHandle) -> Result<u32> {
        self.check_read()?;
        Ok(self.devices.get_live(thin)?.snapshotted_time)
    }

    /// [`snapshotted_time`](Self::snapshotted_time) of device `id`, if that is open.
    pub fn snapshotted_time_of(&self, id: DeviceId) -> Option<u32> {
        let device = self.devices.slot(self.devices.find(id)?).ok()?;
        Some(device.snapshotted_time)
    }

    /// The first run of mapped blocks of a device within `begin..end`, as long as the data blocks are
    /// consecutive and equally shared; `None` if nothing is mapped there.
    pub fn find_mapped_range(
        &self,
        thin: &ThinHandle,
        begin: VirtualBlock,
        end: VirtualBlock,
    ) -> Result<Option<MappedRange>> {
        self.check_read()?;
        let device = self.devices.get_live(thin)?;
        let tree = self.device_tree(&self.bm, device)?;
        let mut found: Result<Option<MappedRange>> = Ok(None);
        tree.scan(&self.bm, &[begin], end, |virtual_block, value| {
            let Mapping { block, shared } = match self.mapping(device, virtual_block, value) {
                Ok(mapping) => mapping,
                Err(e) => {
                    found = Err(e);
                    return false;
                }
            };
            match &mut found {
                Ok(Some(range)) => {
                    // Data blocks have 40 bits.
                    let next = range.block + (range.end - range.begin);
                    let goes_on = (virtual_block, block, shared) == (range.end, next, range.shared);
                    if goes_on {
                        range.end += 1;
                    }
                    goes_on
                }
                found => {
                    *found = Ok(Some(MappedRange {
                        begin: virtual_block,
                        // It is below `end`.
                        end: virtual_block + 1,
                        block,
                        shared,
                    }));
                    true
                }
            }
        })?;
        found
    }

    /// The first mapped block of a device within `begin..end`; `None` if nothing is mapped there.
    pub fn next_mapped(
        &self,
        thin: &ThinHandle,
        begin: VirtualBlock,
        end: VirtualBlock,
    ) -> Result<Option<VirtualBlock>> {
        self.check_read()?;
        let device = self.devices.get_live(thin)?;
        let tree = self.device_tree(&self.bm, device)?;
        let next = tree.lookup_next(&self.bm, &[begin])?;
        Ok(next.map(|(block, _)| block).filter(|block| *block < end))
    }

    /// The highest mapped block of a device; `None` if nothing is mapped.
    pub fn highest_mapped(&self, thin: &ThinHandle) -> Result<Option<VirtualBlock>> {
        self.check_read()?;
        let device = self.devices.get_live(thin)?;
        let highest = self.device_tree(&self.bm, device)?.highest_key(&self.bm)?;
        Ok(highest.map(|[block]| block))
    }

    /// How many blocks of a device are mapped.
    pub fn mapped_count(&self, thin: &ThinHandle) -> Result<u64> {
        self.check_read()?;
        Ok(self.devices.get_live(thin)?.mapped_blocks)
    }

    /// Maps `block` of a device to `data_block`.
    ///
    /// The mapping takes over the reference to `data_block` that [`alloc_data_block`](Self::alloc_data_block)
    /// gave. If the block was mapped, the old data block loses its reference. If that was the last one `freed` is
    /// told, and the block counts as [`maybe_shared`](Freed::maybe_shared): the device itself still wants it, should
    /// the transaction not be committed.
    pub fn insert_block(
        &mut self,
        thin: &ThinHandle,
        block: VirtualBlock,
        data_block: DataBlock,
        freed: &mut dyn FnMut(Freed),
    ) -> Result {
        self.insert_blocks(thin, &[(block, data_block)], freed)
    }

    /// Maps blocks of a device, each to the data block beside it. The former must ascend.
    ///
    /// As if each were given to [`insert_block`](Self::insert_block), at less cost.
    pub fn insert_blocks(
        &mut self,
        thin: &ThinHandle,
        blocks: &[(VirtualBlock, DataBlock)],
        freed: &mut dyn FnMut(Freed),
    ) -> Result {
        self.check_change()?;
        let device = self.devices.get_live(thin)?;
        let id = device.id;
        // They do not get more than that, whichever of them are new.
        if device
            .mapped_blocks
            .checked_add(blocks.len() as u64)
            .is_none()
        {
            return Err(Error::MappedBlocks(id));
        }
        for pair in blocks.windows(2) {
            if let [(first, _), (second, _)] = pair {
                if first >= second {
                    return Err(Error::BadBlocks {
                        begin: *first,
                        end: *second,
                    });
                }
            }
        }
        let limit = self.data_limit.min(MAX_DATA_BLOCKS);
        for &(_, data_block) in blocks {
            if data_block >= limit {
                return Err(Error::BadBlocks {
                    begin: data_block,
                    end: data_block.saturating_add(1),
                });
            }
        }
        if blocks.is_empty() {
            return Ok(());
        }

        let time = self.time;
        let entries = blocks
            .iter()
            .map(|&(block, data)| (block, BlockTime::pack(data, time)));
        self.change(|md| {
            let data_blocks = &mut DataBlocks::telling(&mut md.data_sm, freed, u32::MAX);
            let (nr_new, root) =
                md.mappings
                    .change_inner(&mut md.tm.tx(&md.bm), id.key(), |tx, tree| {
                        let nr_new = tree.insert_sorted(tx, data_blocks, entries)?;
                        Ok((nr_new, tree.root()))
                    })?;
            data_blocks.finish(&mut md.tm.tx(&md.bm))?;
            let device = md.devices.get_changed(thin)?;
            device.root = Root::new(root);
            device.mapped_blocks = device
                .mapped_blocks
                .checked_add(nr_new)
                .ok_or(Error::MappedBlocks(id))?;
            Ok(())
        })
    }

    /// Removes the mappings of a device within `begin..end`. `freed` is told of the data blocks that nothing
    /// refers to any more.
    ///
    /// If there are none the metadata are the same as before, but there may be something to commit nevertheless;
    /// whoever cares asks for [`next_mapped`](Self::next_mapped) first.
    pub fn remove_range(
        &mut self,
        thin: &ThinHandle,
        begin: VirtualBlock,
        end: VirtualBlock,
        freed: &mut dyn FnMut(Freed),
    ) -> Result {
        self.check_change()?;
        let device = self.devices.get_live(thin)?;
        let id = device.id;
        // A crash would bring back the metadata snapshot, with the mappings of any time.
        let snapshotted_time = match self.released {
            true => u32::MAX,
            false => device.snapshotted_time,
        };
        if begin >= end {
            return Ok(());
        }
        self.change(|md| {
            let data_blocks = &mut DataBlocks::telling(&mut md.data_sm, freed, snapshotted_time);
            let (removed, root) =
                md.mappings
                    .change_inner(&mut md.tm.tx(&md.bm), id.key(), |tx, tree| {
                        let removed = tree.remove_range(tx, data_blocks, begin, end)?;
                        Ok((removed, tree.root()))
                    })?;
            data_blocks.finish(&mut md.tm.tx(&md.bm))?;
            let device = match removed {
                0 => md.devices.get_mut(thin)?,
                _ => md.devices.get_changed(thin)?,
            };
            device.root = Root::new(root);
            device.mapped_blocks = device
                .mapped_blocks
                .checked_sub(removed)
                .ok_or(Error::MappedBlocks(id))?;
            Ok(())
        })
    }

    /// Whether more than one reference to a data block exists.
    pub fn block_is_shared(&self, block: DataBlock) -> Result<bool> {
        self.check_read()?;
        Ok(self.data_sm.is_shared(&self.bm, block)?)
    }

    /// Adds one reference to each data block of `begin..end`.
    pub fn inc_data_range(&mut self, begin: DataBlock, end: DataBlock) -> Result {
        self.check_change()?;
        self.check_data_range(begin, end)?;
        self.change(|md| Ok(md.data_sm.inc(&mut md.tm.tx(&md.bm), begin..end)?))
    }

    /// Takes one reference from each data block of `begin..end`.
    pub fn dec_data_range(&mut self, begin: DataBlock, end: DataBlock) -> Result {
        self.check_change()?;
        self.check_data_range(begin, end)?;
        self.change(|md| {
            Ok(md
                .data_sm
                .dec(&mut md.tm.tx(&md.bm), begin..end, &mut |_| ())?)
        })
    }

    /// Takes a free data block that is `usable`, which gets a reference count of one.
    ///
    /// A block that was freed since the last commit is not taken: what the device holds there may still be
    /// wanted. So [`Error::NoDataSpace`] may come although [`free_data_blocks`](Self::free_data_blocks) are
    /// left; a commit makes them available. It does so for blocks that have become usable, too.
    pub fn alloc_data_block(
        &mut self,
        usable: &mut dyn FnMut(DataBlock) -> bool,
    ) -> Result<DataBlock> {
        let mut found = None;
        self.alloc_data_blocks(1, usable, &mut |run| found = Some(run.start))?;
        found.ok_or(Error::NoDataSpace)
    }

    /// As [`alloc_data_block`](Self::alloc_data_block), for up to `n` blocks: `out` gets them in runs, in the order in
    /// which they would be taken one by one. Returns how many there are, at least one unless `n` is zero.
    pub fn alloc_data_blocks(
        &mut self,
        n: u32,
        usable: &mut dyn FnMut(DataBlock) -> bool,
        out: &mut dyn FnMut(Range<DataBlock>),
    ) -> Result<u32> {
        self.check_change()?;
        if n == 0 {
            return Ok(0);
        }
        self.change(|md| {
            let mut left = n;
            while left > 0 {
                let tx = &mut md.tm.tx(&md.bm);
                let Some(run) = md.data_sm.new_run(tx, left, usable)? else {
                    break;
                };
                // It is not longer than what was asked for.
                left -= (run.end - run.start) as u32;
                out(run);
            }
            match left {
                left if left == n => Err(Error::NoDataSpace),
                left => Ok(n - left),
            }
        })
    }

    /// Takes back data blocks that [`alloc_data_blocks`](Self::alloc_data_blocks) gave in this transaction and that
    /// were not mapped, nor written to. They are free again, without a commit. What is put back last is taken first.
    pub fn put_back_data_blocks(&mut self, blocks: Range<DataBlock>) -> Result {
        self.check_change()?;
        self.check_data_range(blocks.start, blocks.end)?;
        self.change(|md| Ok(md.data_sm.put_back(&mut md.tm.tx(&md.bm), blocks)?))
    }

    /// The first run of data blocks within `begin..end` that nothing refers to, neither now nor in what was
    /// committed last: whatever happens, nobody wants to read them.
    pub fn find_free_range(
        &mut self,
        begin: DataBlock,
        end: DataBlock,
    ) -> Result<Option<Range<DataBlock>>> {
        self.check_read()?;
        Ok(self.data_sm.find_free(&self.bm, begin..end)?)
    }

    fn check_data_range(&self, begin: DataBlock, end: DataBlock) -> Result {
        if begin > end || end > self.data_limit {
            return Err(Error::BadBlocks { begin, end });
        }
        Ok(())
    }

    /// The tree of a device's mappings.
    fn device_tree<'b, R: Reader<'b>>(&self, reader: R, device: &Device) -> Result<DeviceTree> {
        if let Some(root) = device.root.get() {
            return Ok(DeviceTree::from_root(root));
        }
        let root = self
            .lookup_root(reader, device.id)?
            .ok_or(Error::NoDevice(device.id))?;
        device.root.found(root);
        Ok(DeviceTree::from_root(root))
    }

    /// The root of a device's mappings; `None` if there are none, not even an empty tree.
    pub(crate) fn lookup_root<'b, R: Reader<'b>>(
        &self,
        reader: R,
        id: DeviceId,
    ) -> Result<Option<BlockNr>> {
        let top = TopTree::from_root(self.mappings.root());
        let root = top.lookup(reader, &[id.key()])?;
        Ok(root.map(|root| root.get()))
    }

    /// What `value`, found for `virtual_block` of `device`, means.
    fn mapping(
        &self,
        device: &Device,
        virtual_block: VirtualBlock,
        value: BlockTime,
    ) -> Result<Mapping> {
        let block = value.block();
        if block >= self.data_limit {
            return Err(Error::BadMapping {
                device: device.id,
                virtual_block,
                data_block: block,
            });
        }
        Ok(Mapping {
            block,
            shared: device.snapshotted_time > value.time(),
        })
    }
}
