// SPDX-License-Identifier: GPL-2.0

//! Sizes of the data and the metadata device, and what is free of them.

use persistent_data::{
    block::BlockNr,
    block_manager::BlockManager, //
};

use crate::{
    error::{
        Error,
        Result, //
    },
    format::{
        MAX_DATA_BLOCKS,
        METADATA_MAX_RESERVE, //
    },
    metadata::Metadata, //
};

impl<B: BlockManager> Metadata<B> {
    /// The size of the data device in blocks.
    pub fn nr_data_blocks(&self) -> Result<u64> {
        self.check_not_failed()?;
        Ok(self.data_sm.nr_blocks())
    }

    /// How many data blocks are free, with those that were freed since the last commit.
    pub fn free_data_blocks(&self) -> Result<u64> {
        self.check_not_failed()?;
        Ok(self.data_sm.nr_free())
    }

    /// The size of the metadata device in blocks.
    pub fn nr_metadata_blocks(&self) -> Result<u64> {
        self.check_not_failed()?;
        Ok(self.tm.nr_blocks())
    }

    /// How many metadata blocks are free, without those that are kept back for commits: a tenth of the device,
    /// 16 MiB at most.
    pub fn free_metadata_blocks(&self) -> Result<u64> {
        self.check_not_failed()?;
        Ok(self.tm.nr_free().saturating_sub(self.reserve))
    }

    /// Whether the metadata blocks that are kept back suffice for a change that frees more than it takes: at
    /// least half of them are free.
    pub fn may_use_reserve(&self) -> Result<bool> {
        self.check_not_failed()?;
        Ok(self.tm.nr_free() >= self.reserve.div_ceil(2))
    }

    /// Grows the data device to `new` blocks.
    ///
    /// Gives [`Error::Shrink`] if it is larger.
    pub fn resize_data(&mut self, new: u64) -> Result {
        self.check_change()?;
        let Some(extra) = extra_blocks(self.data_limit, new)? else {
            return Ok(());
        };
        if new > MAX_DATA_BLOCKS {
            return Err(Error::TooManyDataBlocks(new));
        }
        self.change(|md| {
            md.data_sm.extend(&mut md.tm.tx(&md.bm), extra)?;
            md.data_limit = new;
            Ok(())
        })
    }

    /// Grows the metadata device to `new` blocks.
    ///
    /// Gives [`Error::Shrink`] if it is larger.
    pub fn resize_metadata(&mut self, new: BlockNr) -> Result {
        self.check_change()?;
        let Some(extra) = extra_blocks(self.tm.nr_blocks(), new)? else {
            return Ok(());
        };
        self.change(|md| {
            md.tm.extend(&md.bm, extra)?;
            md.set_reserve();
            Ok(())
        })
    }

    pub(crate) fn set_reserve(&mut self) {
        self.reserve = (self.tm.nr_blocks() / 10).min(METADATA_MAX_RESERVE);
    }

    /// Watches the number of free metadata blocks: [`threshold_crossed`](Self::threshold_crossed) will tell
    /// when it has fallen to `blocks` or below.
    pub fn set_threshold(&mut self, blocks: BlockNr) -> Result {
        self.check_not_failed()?;
        self.threshold = Some(blocks);
        self.tm.set_threshold(blocks);
        Ok(())
    }

    /// Whether the number of free metadata blocks has fallen to the threshold since the last call. It must
    /// rise above it before this is true again.
    pub fn threshold_crossed(&mut self) -> bool {
        self.tm.threshold_crossed()
    }
}

/// By how much a device grows; `None` if it does not.
fn extra_blocks(from: u64, to: u64) -> Result<Option<u64>> {
    match to.checked_sub(from) {
        Some(0) => Ok(None),
        Some(extra) => Ok(Some(extra)),
        None => Err(Error::Shrink { from, to }),
    }
}
