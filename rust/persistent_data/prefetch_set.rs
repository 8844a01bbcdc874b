// SPDX-License-Identifier: GPL-2.0

//! Blocks that somebody who would not wait has asked for.
//!
//! The set is lossy and lock-free: a block that finds its slot taken is forgotten, which costs no more
//! than a later read that waits. Each slot is one atomic word that holds nothing but the block number, no
//! other memory is published through it, and slots do not depend on each other. So relaxed ordering is
//! enough: [`add`](PrefetchSet::add) fills an empty slot by compare-and-exchange, and
//! [`issue`](PrefetchSet::issue) takes a full one by exchange, so a number is taken at most once. A number
//! that is added while `issue` runs is either taken by it or stays for the next one.

use crate::{
    block::BlockNr,
    block_manager::BlockManager,
    platform::atomic::{
        Atomic,
        Relaxed, //
    },
};

const NR_SLOTS: usize = 128;

/// Stands for an empty slot; no device is that large.
const EMPTY: BlockNr = BlockNr::MAX;

/// A small set of blocks to be read ahead.
pub struct PrefetchSet {
    slots: [Atomic<u64>; NR_SLOTS],
}

impl PrefetchSet {
    /// An empty set.
    pub const fn new() -> Self {
        Self {
            slots: [const { Atomic::<u64>::new(EMPTY) }; NR_SLOTS],
        }
    }

    /// Notes a block, unless its slot is taken.
    pub fn add(&self, block: BlockNr) {
        if let Some(slot) = self.slots.get(Self::slot(block)) {
            // A failure means that the slot is taken, and this block is forgotten.
            let _ = slot.cmpxchg(EMPTY, block, Relaxed);
        }
    }

    /// Starts to read all noted blocks, and empties the set.
    pub fn issue<B: BlockManager>(&self, bm: &B) {
        for slot in &self.slots {
            // Looking first keeps the cache lines shared while there is nothing to do.
            if slot.load(Relaxed) == EMPTY {
                continue;
            }
            let block = slot.xchg(EMPTY, Relaxed);
            if block != EMPTY {
                bm.prefetch(block);
            }
        }
    }

    /// Neighbours fall into different slots: the top bits of a multiplication by the golden ratio.
    fn slot(block: BlockNr) -> usize {
        const GOLDEN_RATIO: u64 = 0x61c8_8646_80b5_83eb;
        (block.wrapping_mul(GOLDEN_RATIO) >> (u64::BITS - NR_SLOTS.trailing_zeros())) as usize
    }
}

impl Default for PrefetchSet {
    fn default() -> Self {
        Self::new()
    }
}
