// SPDX-License-Identifier: GPL-2.0

//! Data blocks that the worker has allocated at once for the bios that it is about to process.
//!
//! To allocate many blocks at once costs little more than to allocate one. A supply lasts for the bios of one device
//! in one round of the worker; what is left then goes back. While a pool is short of space its blocks are allocated
//! one by one, so that it runs out when there is none, not when there are few.

use kernel::{
    prelude::*,
    sync::Arc, //
};
use thin_metadata::{
    DataBlock,
    Mapping, //
};

use crate::{
    block_set::BlockSet,
    per_bio::ThinBios,
    pool::Pool,
    thin::Thin, //
};

/// The most blocks to be allocated at once.
const MAX_BLOCKS: usize = 128;

/// Allocated blocks, and how many are wanted.
pub(crate) struct Supply {
    /// Room for [`MAX_BLOCKS`].
    blocks: KVec<DataBlock>,
    /// The first of them that was not taken.
    next: usize,
    /// How many more blocks the bios may want.
    wanted: usize,
}

impl Supply {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            blocks: KVec::with_capacity(MAX_BLOCKS, GFP_KERNEL)?,
            next: 0,
            wanted: 0,
        })
    }

    /// Notes how many blocks the writes among `bios`, which are sorted, may want.
    pub(crate) fn plan_for(&mut self, pool: &Pool, thin: &Thin, bios: &ThinBios) {
        let mut last = None;
        self.wanted = 0;
        let writes = bios
            .iter()
            .filter(|bio| bio.is_write() && bio.len_bytes() > 0);
        for bio in writes.filter(|bio| !pool.unmaps(thin, bio)) {
            let block = pool.block_size.block_of(bio.sector());
            let is_mapped =
                |found: Option<_>| found.is_some_and(|mapping: Mapping| !mapping.shared);
            if last != Some(block) && !thin.cache.get(block).is_some_and(is_mapped) {
                self.wanted = self.wanted.saturating_add(1);
            }
            last = Some(block);
        }
    }

    fn take(&mut self) -> Option<DataBlock> {
        let block = self.blocks.get(self.next).copied()?;
        self.next = self.next.saturating_add(1);
        self.wanted = self.wanted.saturating_sub(1);
        Some(block)
    }
}

impl Pool {
    /// Allocates a data block for a write that the worker is processing.
    ///
    /// [`thin_metadata::Error::NoDataSpace`] means that the pool's mode says so, too, unless blocks are `busy`. All
    /// errors have been dealt with as far as the pool is concerned.
    pub(crate) fn supply_data_block(
        self: &Arc<Self>,
        supply: &mut Supply,
        busy: &BlockSet,
    ) -> thin_metadata::Result<DataBlock> {
        if let Some(block) = supply.take() {
            return Ok(block);
        }
        let n = supply.wanted.min(MAX_BLOCKS);
        if n > 1 && self.has_plenty(n as u64)? {
            match self.fill(supply, n as u32, busy) {
                // If there is none, it is told below.
                Ok(_) | Err(thin_metadata::Error::NoDataSpace) => {}
                Err(e) => {
                    self.metadata_operation_failed("dm_pool_alloc_data_block", e);
                    return Err(e);
                }
            }
            if let Some(block) = supply.take() {
                return Ok(block);
            }
        }
        supply.wanted = supply.wanted.saturating_sub(1);
        self.alloc_data_block(busy)
    }

    /// Whether taking `n` data blocks at once comes close to no limit.
    fn has_plenty(&self, n: u64) -> thin_metadata::Result<bool> {
        let (data, metadata) = {
            let pool = self.metadata.read();
            let metadata = &pool.metadata;
            (
                metadata.free_data_blocks()?,
                metadata.free_metadata_blocks()?,
            )
        };
        Ok(metadata > 0 && data.saturating_sub(n) > self.low_water_mark())
    }

    /// Fills the supply, which is empty, with up to `n` blocks.
    fn fill(&self, supply: &mut Supply, n: u32, busy: &BlockSet) -> thin_metadata::Result<u32> {
        supply.blocks.clear();
        supply.next = 0;
        let blocks = &mut supply.blocks;
        self.with_idle_blocks(|pool| {
            let mut out = |run| {
                for block in run {
                    // There is room for as many.
                    let _ = blocks.push_within_capacity(block);
                }
            };
            pool.metadata
                .alloc_data_blocks(n, &mut |block| !busy.contains(block), &mut out)
        })
    }

    /// Gives back what is left.
    pub(crate) fn end_supply(self: &Arc<Self>, supply: &mut Supply) {
        let left = supply.blocks.get(supply.next..).unwrap_or(&[]);
        for run in left.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else {
                continue;
            };
            let result = self
                .changes()
                .write()
                .metadata
                .put_back_data_blocks(*first..last.saturating_add(1));
            if let Err(e) = result {
                self.metadata_operation_failed("dm_pool_dec_data_range", e);
            }
        }
        supply.blocks.clear();
        supply.next = 0;
        supply.wanted = 0;
    }
}
