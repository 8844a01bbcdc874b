// SPDX-License-Identifier: GPL-2.0

//! A pool with a tree of mappings that is three nodes deep, and a look at nodes that reads the format by itself.

use persistent_data::{
    block::BlockNr,
    block_manager::BlockManager,
    memory::MemoryBm, //
};

use super::{
    model::{
        id,
        Model, //
    },
    pool, //
};
use crate::Metadata;

/// How many blocks are mapped, each far from the next: more than 252 leaves can hold, even more than 336.
pub const NR_MAPPED: u64 = 90_000;
/// How far they are from each other.
pub const DISTANCE: u64 = 1000;

/// A pool whose device 1 has such a tree, committed.
pub fn deep_pool(nr_metadata: u64, nr_data: u64) -> (Metadata<MemoryBm>, Model) {
    let mut md = pool(nr_metadata, nr_data);
    let mut model = Model::new(nr_data);
    md.create_thin(id(1)).unwrap();
    model.create(1);
    let thin = md.open_thin(id(1)).unwrap();
    let blocks: Vec<u64> = (0..NR_MAPPED).collect();
    for blocks in blocks.chunks(100) {
        let mut data = Vec::new();
        md.alloc_data_blocks(blocks.len() as u32, &mut |_| true, &mut |run| {
            data.extend(run);
        })
        .unwrap();
        let virtual_blocks = blocks.iter().map(|block| block * DISTANCE);
        let pairs: Vec<_> = virtual_blocks.zip(data).collect();
        md.insert_blocks(&thin, &pairs, &mut |_| ()).unwrap();
        for (virtual_block, block) in pairs {
            model.insert(1, virtual_block, block);
        }
    }
    md.commit().unwrap();
    md.close_thin(&thin);
    assert_eq!(depth(&md, root_of(&md, 1)), 3);
    (md, model)
}

/// The root of a device's mappings.
pub fn root_of(md: &Metadata<MemoryBm>, dev: u64) -> BlockNr {
    let root = md.lookup_root(md.bm(), id(dev)).unwrap();
    root.expect("the device has a tree")
}

/// The children of a node with the keys that they begin at; none of a leaf.
pub fn children(md: &Metadata<MemoryBm>, node: BlockNr) -> Vec<(u64, BlockNr)> {
    let data = md.bm().read_raw(node).unwrap();
    let number = |at: usize, len: usize| {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&data[at..at + len]);
        u64::from_le_bytes(bytes)
    };
    if number(4, 4) != 1 {
        return Vec::new();
    }
    let values = 32 + 8 * number(20, 4) as usize;
    (0..number(16, 4) as usize)
        .map(|i| (number(32 + 8 * i, 8), number(values + 8 * i, 8)))
        .collect()
}

/// How many nodes are on the way from `root` to a leaf.
pub fn depth(md: &Metadata<MemoryBm>, root: BlockNr) -> usize {
    match children(md, root).first() {
        Some((_, child)) => 1 + depth(md, *child),
        None => 1,
    }
}
