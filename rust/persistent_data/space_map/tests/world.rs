// SPDX-License-Identifier: GPL-2.0

//! A metadata device with a superblock, its space map, one of a data device, and blocks that nothing but the
//! test refers to.

use std::collections::BTreeMap;

use zerocopy::{
    byteorder::little_endian::{
        U32,
        U64, //
    },
    transmute_mut, transmute_ref,
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

use crate::{
    block::{
        check_checksum,
        check_location,
        seal_checksum,
        BlockData,
        BlockNr,
        Validator, //
    },
    block_manager::{
        BlockManager,
        Guard, //
    },
    memory::MemoryBm,
    space_map::{
        DiskSpaceMap,
        SmRoot, //
    },
    transaction::Transaction,
    transaction_manager::TransactionManager,
    Result,
};

pub(super) const SUPERBLOCK: BlockNr = 0;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Superblock {
    checksum: U32,
    not_used: U32,
    block: U64,
    pub(super) metadata: SmRoot,
    pub(super) data: SmRoot,
    pub(super) id: U64,
    rest: [u8; 4008],
}

impl Superblock {
    pub(super) fn of(data: &BlockData) -> &Self {
        transmute_ref!(data)
    }

    fn of_mut(data: &mut BlockData) -> &mut Self {
        transmute_mut!(data)
    }
}

pub(super) static SB_VALIDATOR: Validator = Validator {
    name: "test superblock",
    check: |data, block| {
        check_location(block, Superblock::of(data).block.get())?;
        check_checksum(data, block, 1)
    },
    prepare: |data, block| {
        Superblock::of_mut(data).block = block.into();
        seal_checksum(data, 1);
    },
};

/// Blocks that the test holds references to. Their content is their number at the time of their making.
pub(super) static USER_VALIDATOR: Validator = Validator {
    name: "test block",
    check: |data, block| {
        check_location(block, Superblock::of(data).block.get())?;
        check_checksum(data, block, 2)
    },
    prepare: |data, block| {
        Superblock::of_mut(data).block = block.into();
        seal_checksum(data, 2);
    },
};

pub(super) struct World {
    pub(super) bm: MemoryBm,
    pub(super) tm: TransactionManager,
    pub(super) data: DiskSpaceMap,
    /// The number of commits.
    pub(super) id: u64,
}

impl World {
    /// A committed world.
    pub(super) fn new(nr_metadata: BlockNr, nr_data: BlockNr) -> Result<Self> {
        Self::new_on(MemoryBm::new(nr_metadata), nr_data)
    }

    pub(super) fn new_on(bm: MemoryBm, nr_data: BlockNr) -> Result<Self> {
        let mut tm = TransactionManager::create(&bm, SUPERBLOCK)?;
        let data = DiskSpaceMap::create(&mut tm.tx(&bm), nr_data)?;
        drop(bm.write_zero(SUPERBLOCK, &SB_VALIDATOR)?);
        let mut world = Self {
            bm,
            tm,
            data,
            id: 0,
        };
        world.commit()?;
        Ok(world)
    }

    pub(super) fn open(bm: MemoryBm) -> Result<Self> {
        let sb = bm.read(SUPERBLOCK, &SB_VALIDATOR)?;
        let (metadata, data, id) = {
            let sb = Superblock::of(&sb);
            (sb.metadata, sb.data, sb.id.get())
        };
        drop(sb);
        let tm = TransactionManager::open(&bm, SUPERBLOCK, &metadata)?;
        let data = DiskSpaceMap::open(&bm, &data)?;
        Ok(Self { bm, tm, data, id })
    }

    /// Drops all that was not committed.
    pub(super) fn roll_back(mut self) -> Result<Self> {
        self.bm.reset();
        Self::open(self.bm)
    }

    pub(super) fn commit(&mut self) -> Result {
        self.data.commit(&mut self.tm.tx(&self.bm))?;
        let metadata = self.tm.pre_commit(&self.bm)?;
        let mut guard = self.bm.write(SUPERBLOCK, &SB_VALIDATOR)?;
        let sb = Superblock::of_mut(&mut guard);
        sb.metadata = metadata;
        sb.data = self.data.root();
        sb.id = (self.id + 1).into();
        self.tm.commit(&self.bm, guard)?;
        self.id += 1;
        Ok(())
    }

    pub(super) fn new_user_block(&mut self) -> Result<BlockNr> {
        let guard = self.tm.tx(&self.bm).new_block(&USER_VALIDATOR)?;
        Ok(guard.location())
    }

    pub(super) fn data_count(&self, block: BlockNr) -> Result<u32> {
        self.data.get_count(&self.bm, block)
    }

    pub(super) fn metadata_count(&self, block: BlockNr) -> Result<u32> {
        self.tm.ref_count(&self.bm, block)
    }

    /// The references to metadata blocks that the committed structures themselves have.
    pub(super) fn structure(&self) -> Result<BTreeMap<BlockNr, u32>> {
        let guard = self.bm.read(SUPERBLOCK, &SB_VALIDATOR)?;
        let sb = Superblock::of(&guard);
        let mut blocks = BTreeMap::new();
        add(&mut blocks, SUPERBLOCK);

        let index = sb.metadata.bitmap_root.get();
        add(&mut blocks, index);
        let guard = self.bm.read_raw(index)?;
        for i in 0..sb.metadata.nr_blocks.get().div_ceil(16320) as usize {
            add(&mut blocks, le64(&guard[..], 16 + 16 * i));
        }
        self.add_tree(
            &mut blocks,
            sb.metadata.ref_count_root.get(),
            &mut |_, _| {},
        )?;

        let mut bitmaps = Vec::new();
        self.add_tree(
            &mut blocks,
            sb.data.bitmap_root.get(),
            &mut |_, value: &[u8]| bitmaps.push(le64(value, 0)),
        )?;
        for bitmap in bitmaps {
            add(&mut blocks, bitmap);
        }
        self.add_tree(&mut blocks, sb.data.ref_count_root.get(), &mut |_, _| {})?;
        Ok(blocks)
    }

    /// The keys in the tree of reference counts of the metadata device and of the data device.
    pub(super) fn big_counts(&self) -> Result<[BTreeMap<u64, u32>; 2]> {
        let guard = self.bm.read(SUPERBLOCK, &SB_VALIDATOR)?;
        let sb = Superblock::of(&guard);
        let mut result = [BTreeMap::new(), BTreeMap::new()];
        let roots = [sb.metadata.ref_count_root, sb.data.ref_count_root];
        for (counts, root) in result.iter_mut().zip(roots) {
            self.add_tree(&mut BTreeMap::new(), root.get(), &mut |key, value| {
                counts.insert(key, le32(value, 0));
            })?;
        }
        Ok(result)
    }

    /// Counts the nodes of a tree, and calls `f` for its entries. Reads the format by itself.
    fn add_tree(
        &self,
        blocks: &mut BTreeMap<BlockNr, u32>,
        root: BlockNr,
        f: &mut dyn FnMut(u64, &[u8]),
    ) -> Result {
        add(blocks, root);
        let guard = self.bm.read_raw(root)?;
        let is_leaf = le32(&guard[..], 4) == 2;
        let nr_entries = le32(&guard[..], 16) as usize;
        let max_entries = le32(&guard[..], 20) as usize;
        let value_size = le32(&guard[..], 24) as usize;
        for i in 0..nr_entries {
            let start = 32 + 8 * max_entries + value_size * i;
            let value = &guard[start..start + value_size];
            if is_leaf {
                f(le64(&guard[..], 32 + 8 * i), value);
            } else {
                self.add_tree(blocks, le64(value, 0), f)?;
            }
        }
        Ok(())
    }
}

pub(super) fn le64(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(data[at..at + 8].try_into().unwrap())
}

pub(super) fn le32(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(data[at..at + 4].try_into().unwrap())
}

fn add(blocks: &mut BTreeMap<BlockNr, u32>, block: BlockNr) {
    *blocks.entry(block).or_default() += 1;
}
