// SPDX-License-Identifier: GPL-2.0

//! Data blocks that the worker has allocated at once for the bios that it is about to process.
//!
//! To allocate many blocks at once costs little more than to allocate one. A supply lasts for the bios of one device
//! in one round of the worker; what is left then goes back. While a pool is short of space its blocks are allocated
//! one by one, so that it runs out when there is none, not when there are few.

use core::ops::Range;

use kernel::{
    prelude::*,
    sync::Arc, //
};
use thin_metadata::{
    DataBlock,
    Error,
    Mapping, //
};

use crate::{
    block_set::BlockSet,
    mode::Mode,
    per_bio::ThinBios,
    pool::Pool,
    pool_metadata::Transaction,
    thin::Thin,
    worker::Worker,
    LOG_PREFIX, //
};

/// The most blocks to be allocated at once.
const MAX_BLOCKS: usize = 128;

/// What an allocation is called in log lines.
const ALLOCATE: &str = "dm_pool_alloc_data_block";

/// What it is called that a block was not needed.
const PUT_BACK: &str = "dm_pool_dec_data_range";

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

/// Why there is no data block. All errors have been dealt with as far as the pool is concerned.
pub(crate) enum NoBlock {
    /// Those that are free rest, or are being discarded. [`Pool::blocks_released`] will tell.
    Withheld,
    /// There is none, and the pool's mode says so.
    Exhausted,
    /// The metadata have failed.
    Failed,
}

impl From<Error> for NoBlock {
    fn from(_: Error) -> Self {
        Self::Failed
    }
}

impl Pool {
    /// Allocates a data block for a write that the worker is processing.
    pub(crate) fn supply_data_block(
        self: &Arc<Self>,
        worker: &mut Worker,
    ) -> Result<DataBlock, NoBlock> {
        let Worker {
            supply,
            busy,
            starved,
            ..
        } = worker;
        if let Some(block) = supply.take() {
            return Ok(block);
        }
        if self.is_starved(*starved) {
            return Err(NoBlock::Withheld);
        }
        let n = supply.wanted.min(MAX_BLOCKS);
        if n > 1 && self.has_plenty(n as u64)? {
            match self.fill(supply, n as u32, busy) {
                // If there is none, it is told below.
                Ok(_) | Err(Error::NoDataSpace) => {}
                Err(_) => return Err(NoBlock::Failed),
            }
            if let Some(block) = supply.take() {
                return Ok(block);
            }
        }
        supply.wanted = supply.wanted.saturating_sub(1);
        // If there is a block after all, those who wait still are to be tried again.
        self.alloc_data_block(busy, starved)
    }

    /// Whether nothing has become available since writes found all free blocks withheld in that transaction.
    fn is_starved(&self, starved: Option<Transaction>) -> bool {
        starved.is_some_and(|transaction| self.metadata.read().transaction() == transaction)
    }

    /// Has those tried again who found all free blocks withheld, now that some are not any more.
    pub(crate) fn blocks_released(self: &Arc<Self>, worker: &mut Worker) {
        if worker.starved.take().is_some() {
            self.retry_bios();
        }
    }

    /// The same, if somebody has committed, and so perhaps freed other blocks.
    pub(crate) fn look_for_new_blocks(self: &Arc<Self>, worker: &mut Worker) {
        if worker.starved.is_some() && !self.is_starved(worker.starved) {
            self.blocks_released(worker);
        }
    }

    /// Allocates a data block that is not `busy`. If all free ones are withheld, `starved` tells in which transaction.
    fn alloc_data_block(
        self: &Arc<Self>,
        busy: &BlockSet,
        starved: &mut Option<Transaction>,
    ) -> Result<DataBlock, NoBlock> {
        let free = self.metadata.read().metadata.free_data_blocks()?;
        self.check_low_water_mark(free);
        self.keep_metadata_reserve()?;

        // A commit makes those available that were freed since the last one.
        let mut may_commit = true;
        loop {
            let mut block = None;
            let (withheld, transaction) = self.change(ALLOCATE, |pool| {
                match pool.alloc_data_blocks(1, busy, &mut |run| block = Some(run.start)) {
                    Ok(_) | Err(Error::NoDataSpace) => {}
                    Err(e) => return Err(e),
                }
                Ok((pool.withholds_blocks(busy), pool.transaction()))
            })?;
            if let Some(block) = block {
                return Ok(block);
            }
            if may_commit {
                self.commit()?;
                may_commit = false;
            } else if withheld {
                let mut resting = self.resting.lock();
                if !resting.is_empty() {
                    resting.rest();
                }
                *starved = Some(transaction);
                return Err(NoBlock::Withheld);
            } else {
                self.data_space_exhausted(transaction);
                return Err(NoBlock::Exhausted);
            }
        }
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
    fn fill(
        self: &Arc<Self>,
        supply: &mut Supply,
        n: u32,
        busy: &BlockSet,
    ) -> thin_metadata::Result<u32> {
        supply.blocks.clear();
        supply.next = 0;
        let blocks = &mut supply.blocks;
        self.change(ALLOCATE, |pool| {
            pool.alloc_data_blocks(n, busy, &mut |run| {
                for block in run {
                    // There is room for as many.
                    let _ = blocks.push_within_capacity(block);
                }
            })
        })
    }

    /// Gives back what is left.
    pub(crate) fn end_supply(self: &Arc<Self>, worker: &mut Worker) {
        let Worker {
            supply, unwanted, ..
        } = worker;
        let left = supply.blocks.get(supply.next..).unwrap_or(&[]);
        for run in left.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else {
                continue;
            };
            let blocks = *first..last.saturating_add(1);
            let put_back = self.change(PUT_BACK, |pool| {
                pool.metadata.put_back_data_blocks(blocks.clone())
            });
            keep_if_read_only(unwanted, put_back, &blocks);
        }
        supply.blocks.clear();
        supply.next = 0;
        supply.wanted = 0;
    }

    /// Frees a block that was allocated, and that no mapping will lead to.
    pub(crate) fn free_unused(self: &Arc<Self>, worker: &mut Worker, block: DataBlock) {
        let blocks = block..block.saturating_add(1);
        let freed = match self.mode() {
            Mode::Write | Mode::OutOfDataSpace => self.dec_data_range(&blocks),
            Mode::OutOfMetadataSpace | Mode::ReadOnly => Err(Error::ReadOnly),
            Mode::Fail => return,
        };
        keep_if_read_only(&mut worker.unwanted, freed, &blocks);
    }

    /// Frees what could not be freed before, if the metadata may be changed again.
    pub(crate) fn free_unwanted(self: &Arc<Self>, worker: &mut Worker) {
        while self.mode().may_change_metadata() {
            let Some(blocks) = worker.unwanted.next_run(0, u64::MAX) else {
                return;
            };
            if self.dec_data_range(&blocks) == Err(Error::ReadOnly) {
                return;
            }
            worker.unwanted.remove(&blocks);
        }
    }

    fn dec_data_range(self: &Arc<Self>, blocks: &Range<DataBlock>) -> thin_metadata::Result {
        self.change(PUT_BACK, |pool| {
            pool.metadata.dec_data_range(blocks.start, blocks.end)
        })
    }
}

/// Keeps `blocks` for later if they were not freed because the metadata may not be changed at the moment. If they never may
/// be again, the allocation is lost, too; and any other failure has undone it.
fn keep_if_read_only(
    unwanted: &mut BlockSet,
    freed: thin_metadata::Result,
    blocks: &Range<DataBlock>,
) {
    if freed == Err(Error::ReadOnly) && unwanted.insert(blocks).is_err() {
        dm::log::warn!(
            LOG_PREFIX,
            "no memory to note data blocks {}..{}: allocated, but not used",
            blocks.start,
            blocks.end
        );
    }
}
