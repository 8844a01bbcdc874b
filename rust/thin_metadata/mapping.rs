// SPDX-License-Identifier: GPL-2.0

//! Mappings: from a device's virtual blocks to blocks of the data device.

use core::ops::Range;

use zerocopy::byteorder::little_endian::U64;

use persistent_data::{
    block_manager::BlockManager,
    btree::{
        for_runs,
        Blocks,
        Subtree,
        ValueType, //
    },
    space_map::DiskSpaceMap,
    transaction::Transaction,
    transaction_manager::NonBlocking, //
};

use crate::{
    device::{
        Device,
        ThinHandle, //
    },
    error::{
        Error,
        Result, //
    },
    format::{
        BlockTime,
        DeviceTree,
        MappingTree,
        TopTree, //
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

/// A data block whose last reference went away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Freed {
    /// The block.
    pub block: DataBlock,
    /// Whether another device may have referred to it when the transaction began: then its content is still
    /// wanted should the transaction not be committed.
    pub maybe_shared: bool,
}

/// What mappings own: references to data blocks.
pub(crate) struct DataBlocks<'s> {
    sm: &'s mut DiskSpaceMap,
    /// Told of the blocks that get free.
    freed: Option<&'s mut dyn FnMut(Freed)>,
    /// When the device was last part of a snapshot: mappings that are older may have been shared.
    snapshotted_time: u32,
}

impl<'s> DataBlocks<'s> {
    pub(crate) fn new(sm: &'s mut DiskSpaceMap) -> Self {
        Self {
            sm,
            freed: None,
            snapshotted_time: 0,
        }
    }

    /// For mappings that go away for good.
    pub(crate) fn telling(
        sm: &'s mut DiskSpaceMap,
        freed: &'s mut dyn FnMut(Freed),
        snapshotted_time: u32,
    ) -> Self {
        Self {
            sm,
            freed: Some(freed),
            snapshotted_time,
        }
    }
}

impl ValueType for DataBlocks<'_> {
    type Value = BlockTime;

    fn inc<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        values: &[BlockTime],
    ) -> persistent_data::Result {
        for_runs(values.iter().map(|v| v.block()), |run| self.sm.inc(tx, run))
    }

    fn dec<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        values: &[BlockTime],
    ) -> persistent_data::Result {
        let Self {
            sm,
            freed,
            snapshotted_time,
        } = self;
        let maybe_shared = |v: &BlockTime| v.time() < *snapshotted_time;
        for values in values.chunk_by(|a, b| maybe_shared(a) == maybe_shared(b)) {
            let maybe_shared = values.first().is_some_and(maybe_shared);
            for_runs(values.iter().map(|v| v.block()), |run| {
                sm.dec(tx, run, &mut |block| {
                    if let Some(freed) = freed {
                        freed(Freed {
                            block,
                            maybe_shared,
                        });
                    }
                })
            })?;
        }
        Ok(())
    }

    fn equal(&self, a: &BlockTime, b: &BlockTime) -> bool {
        a.block() == b.block()
    }
}

/// What the upper level of the mapping tree owns while a device's tree is moved to a new root: overwriting a
/// root does not give up the reference to the old one, which the new one has replaced.
struct Moved;

impl ValueType for Moved {
    type Value = U64;

    fn inc<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        values: &[U64],
    ) -> persistent_data::Result {
        Blocks.inc(tx, values)
    }

    fn dec<'b, T: Transaction<'b>>(&mut self, _: &mut T, _: &[U64]) -> persistent_data::Result {
        // Nothing is removed while this is in use.
        Err(persistent_data::Error::Invalid)
    }

    fn equal(&self, _: &U64, _: &U64) -> bool {
        true
    }
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
        self.check_read()?;
        let device = self.devices.get_live(thin)?;
        let keys = [device.id.key(), block];
        let found = if can_block {
            self.mappings.lookup(&self.bm, &keys)?
        } else {
            let reader = NonBlocking::new(&self.bm, self.tm.prefetches());
            self.mappings.lookup(reader, &keys)?
        };
        match found {
            Some(value) => Ok(Some(self.mapping(device, block, value)?)),
            None => Ok(None),
        }
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
        let tree = self.device_tree(device)?;
        let first = match tree.lookup_next(&self.bm, &[begin])? {
            Some((block, value)) if block < end => (block, self.mapping(device, block, value)?),
            _ => return Ok(None),
        };
        let (begin, Mapping { block, shared }) = first;
        let mut range = MappedRange {
            begin,
            // It is below `end`.
            end: begin + 1,
            block,
            shared,
        };
        while range.end < end {
            let Some(value) = tree.lookup(&self.bm, &[range.end])? else {
                break;
            };
            let next = self.mapping(device, range.end, value)?;
            // Data blocks have 40 bits.
            let wanted = Mapping {
                block: block + (range.end - range.begin),
                shared,
            };
            if next != wanted {
                break;
            }
            range.end += 1;
        }
        Ok(Some(range))
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
        let next = self.device_tree(device)?.lookup_next(&self.bm, &[begin])?;
        Ok(next.map(|(block, _)| block).filter(|block| *block < end))
    }

    /// The highest mapped block of a device; `None` if nothing is mapped.
    pub fn highest_mapped(&self, thin: &ThinHandle) -> Result<Option<VirtualBlock>> {
        self.check_read()?;
        let device = self.devices.get_live(thin)?;
        let highest = self.device_tree(device)?.highest_key(&self.bm)?;
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
    /// gave. If the block was mapped, the old data block loses its reference.
    pub fn insert_block(
        &mut self,
        thin: &ThinHandle,
        block: VirtualBlock,
        data_block: DataBlock,
    ) -> Result {
        self.check_change()?;
        let device = self.devices.get_live(thin)?;
        let bad_block = Error::BadBlocks {
            begin: data_block,
            end: data_block.saturating_add(1),
        };
        if data_block >= self.data_limit {
            return Err(bad_block);
        }
        let id = device.id;
        let mapped = device
            .mapped_blocks
            .checked_add(1)
            .ok_or(Error::MappedBlocks(id))?;
        let value = BlockTime::new(data_block, self.time).ok_or(bad_block)?;

        self.change(|md| {
            let inserted = md.mappings.insert(
                &mut md.tm.tx(&md.bm),
                &mut DataBlocks::new(&mut md.data_sm),
                &[id.key(), block],
                value,
            )?;
            let device = md.devices.get_mut(thin)?;
            device.changed = true;
            if inserted {
                device.mapped_blocks = mapped;
            }
            Ok(())
        })
    }

    /// Removes the mappings of a device within `begin..end`. `freed` is told of the data blocks that nothing
    /// refers to any more.
    pub fn remove_range(
        &mut self,
        thin: &ThinHandle,
        begin: VirtualBlock,
        end: VirtualBlock,
        freed: &mut dyn FnMut(Freed),
    ) -> Result {
        self.check_change()?;
        let device = self.devices.get_live(thin)?;
        let (id, snapshotted_time) = (device.id, device.snapshotted_time);
        let mut tree = self.device_tree(device)?;
        match tree.lookup_next(&self.bm, &[begin])? {
            Some((block, _)) if block < end => {}
            _ => return Ok(()),
        }

        self.change(|md| {
            let tx = &mut md.tm.tx(&md.bm);
            let mut data_blocks = DataBlocks::telling(&mut md.data_sm, freed, snapshotted_time);
            let mut top = TopTree::from_root(md.mappings.root());

            // A copy of the upper level counts one more reference to each device's tree. So the upper level
            // is made writable first, by writing what is there already, or this tree would be taken for
            // one of a single owner.
            let mut subtree = Subtree::<_, 1>(&mut data_blocks);
            top.insert(tx, &mut subtree, &[id.key()], U64::new(tree.root()))?;

            let removed = tree.remove_range(tx, &mut data_blocks, begin, end)?;
            top.insert(tx, &mut Moved, &[id.key()], U64::new(tree.root()))?;
            md.mappings = MappingTree::from_root(top.root());

            let device = md.devices.get_mut(thin)?;
            device.changed = true;
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
        self.check_change()?;
        self.change(|md| {
            match md.data_sm.new_block(&mut md.tm.tx(&md.bm), usable) {
                // The library needs metadata blocks too. Only if there are any was it data blocks that lacked,
                // and then nothing was changed.
                Err(persistent_data::Error::NoSpace) if md.tm.nr_free() > 0 => {
                    Err(Error::NoDataSpace)
                }
                result => Ok(result?),
            }
        })
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
    pub(crate) fn device_tree(&self, device: &Device) -> Result<DeviceTree> {
        let top = TopTree::from_root(self.mappings.root());
        match top.lookup(&self.bm, &[device.id.key()])? {
            Some(root) => Ok(DeviceTree::from_root(root.get())),
            None => Err(Error::NoDevice(device.id)),
        }
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
