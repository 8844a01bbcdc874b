// SPDX-License-Identifier: GPL-2.0

//! Discards and write-zeroes of whole blocks.
//!
//! Whole blocks are unmapped; what a discard covers of other blocks is left alone. Data blocks that nothing
//! refers to any more are discarded on the data device, too, if the pool passes discards down.
//!
//! After a crash the mappings may be back, so what they led to must still be there if anybody wants it. The
//! device that asked for the discard does not. Another one may, if the block was shared when the transaction
//! began; only after a commit is it certain that it does not. So such blocks are passed down after the next
//! commit, the others at once.
//!
//! Bios may still be on their way to these blocks. For those of the device that discards any result is good enough. Of a
//! block that was shared they may be another one's, which gave it up a moment ago; so such blocks are not discarded
//! before they have [rested](crate::resting), either. If the transaction is given up meanwhile, the blocks are not
//! discarded at all: they belong to the device again.

use core::ops::Range;

use dm::{
    BlkStatus,
    Op,
    Sector, //
};
use kernel::sync::Arc;
use thin_metadata::{
    Freed,
    VirtualBlock, //
};

use crate::{
    pass_down::{
        Cause,
        PassDown,
        Ranges,
        Stamp, //
    },
    per_bio::ThinBio,
    pool::Pool,
    pool_metadata::Transaction,
    process::Commit,
    resting::Rest,
    thin::Thin,
    worker::{
        Postponed,
        Worker, //
    }, //
};

/// How many blocks are unmapped before others get at the metadata.
const BLOCKS_PER_STEP: u64 = 1024;

impl Pool {
    /// The blocks that `bio` covers all of.
    pub(crate) fn whole_blocks(&self, bio: &ThinBio) -> Range<VirtualBlock> {
        let size = self.block_size;
        let sector = bio.sector();
        let partial_head = u64::from(size.offset_of(sector) != 0);
        let begin = size.block_of(sector).saturating_add(partial_head);
        begin..size.block_of(bio.end_sector()).max(begin)
    }

    /// Whether `bio` is to be processed by [`process_unmap`](Self::process_unmap).
    #[inline]
    pub(crate) fn unmaps(&self, thin: &Thin, bio: &ThinBio) -> bool {
        match bio.op() {
            Op::Discard => true,
            Op::WriteZeroes => self.unmaps_zeroes(thin, bio),
            _ => false,
        }
    }

    #[cold]
    fn unmaps_zeroes(&self, thin: &Thin, bio: &ThinBio) -> bool {
        match self.block_size.block_of(bio.len_sectors()) {
            0 => false,
            1 => self.zeroes_by_unmapping(thin, bio),
            // Nothing else can deal with several blocks.
            _ => true,
        }
    }

    /// Whether the blocks of the write-zeroes `bio` may be unmapped in order to zero them.
    fn zeroes_by_unmapping(&self, thin: &Thin, bio: &ThinBio) -> bool {
        self.keeps_zeroes_unmapped(thin) && !bio.is_nounmap() && self.mode().may_change_metadata()
    }

    /// How many sectors of `bio` can be dealt with at once: those of one block, or whole blocks that get
    /// unmapped.
    pub(crate) fn accept(&self, thin: &Thin, bio: &ThinBio) -> Sector {
        if bio.op() != Op::WriteZeroes {
            return bio.len_sectors();
        }
        let size = self.block_size;
        let to_boundary = u64::from(size.sectors()).saturating_sub(size.offset_of(bio.sector()));
        let whole = self.whole_blocks(bio);
        if to_boundary < u64::from(size.sectors())
            || whole.is_empty()
            || !self.zeroes_by_unmapping(thin, bio)
        {
            return to_boundary;
        }
        size.to_sectors(whole.end.saturating_sub(whole.start))
    }

    /// Unmaps the whole blocks of `bio`, which is a discard or covers nothing else.
    pub(crate) fn process_unmap(
        self: &Arc<Self>,
        worker: &mut Worker,
        thin: &Arc<Thin>,
        bio: ThinBio,
    ) -> Result<(), Postponed> {
        let blocks = self.whole_blocks(&bio);
        if !self.mode().may_change_metadata() {
            let status = match bio.op() {
                Op::Discard => BlkStatus::OK,
                _ => self.io_error(),
            };
            bio.end(status);
            return Ok(());
        }
        if blocks.is_empty() {
            self.end_after_needed_commit(worker, thin, bio);
            return Ok(());
        }
        let Some(bio) = worker.cells.wait(thin.id, &blocks, bio) else {
            return Ok(());
        };

        let is_hint = bio.op() == Op::Discard && !bio.is_fua();
        let passes = self.passes_discards_down();
        let mut ranges = Ranges::new();
        let mut any_shared = false;
        let unmapped = self.unmap(thin, blocks, &mut |freed| {
            if passes {
                ranges.add(freed.blocks);
                any_shared |= freed.maybe_shared;
            }
        });
        let Ok(transaction) = unmapped else {
            bio.end(self.io_error());
            return Ok(());
        };
        if ranges.is_empty() {
            self.end_after_needed_commit(worker, thin, bio);
            return Ok(());
        }
        let pass_down = PassDown::new(&self.data_dev, Cause::Bio(bio), ranges);
        let pass_down = pass_down.and_then(|mut one| {
            // Now: they may be committed, and so free for use, before they are passed down.
            one.keep_from_use(&mut worker.busy);
            match one.is_empty() {
                true => Err(one.into_cause()),
                false => Ok(one),
            }
        });
        match pass_down {
            Ok(one) if is_hint && !any_shared => self.pass_down_at_once(worker, one),
            Ok(mut one) => {
                one.set_stamp(Stamp {
                    transaction,
                    rest: match any_shared {
                        true => self.resting.lock().rest(),
                        false => Rest::default(),
                    },
                });
                worker.pass_down_after_commit.push(one);
            }
            // There is no memory, and to discard anything would only be a favour.
            Err(Cause::Bio(bio)) => self.end_after_needed_commit(worker, thin, bio),
            Err(Cause::Deletion) => {}
        }
        Ok(())
    }

    /// Removes the mappings of `blocks`, and tells which transaction has that. An error has been dealt with as far as the pool is
    /// concerned.
    fn unmap(
        self: &Arc<Self>,
        thin: &Thin,
        blocks: Range<VirtualBlock>,
        freed: &mut dyn FnMut(Freed),
    ) -> thin_metadata::Result<Transaction> {
        let mut transaction = Transaction::default();
        let mut begin = blocks.start;
        while begin < blocks.end {
            self.keep_metadata_reserve()?;

            let end = self.change("dm_thin_remove_range", |pool| {
                let first = match thin.cache.get(begin) {
                    // What the cache knows to be mapped is so: who changes the metadata changes it, too.
                    Some(Some(_)) => Ok(Some(begin)),
                    _ => pool.metadata.next_mapped(&thin.handle, begin, blocks.end),
                };
                let first = match first {
                    Ok(Some(first)) => first,
                    Ok(None) => return Ok(Ok(None)),
                    // Nothing was changed.
                    Err(e) => return Ok(Err(e)),
                };
                let end = first.saturating_add(BLOCKS_PER_STEP).min(blocks.end);
                pool.remove_range(thin, first..end, freed)?;
                transaction = pool.transaction();
                Ok(Ok(Some(end)))
            })?;
            match end {
                Ok(Some(end)) => begin = end,
                Ok(None) => break,
                Err(e) => {
                    self.lookup_failed(thin, begin, e);
                    return Err(e);
                }
            }
        }
        Ok(transaction)
    }

    /// Ends a bio that is done, but for a commit if it asks for one.
    pub(crate) fn end_after_needed_commit(
        self: &Arc<Self>,
        worker: &mut Worker,
        thin: &Thin,
        mut bio: ThinBio,
    ) {
        match self.needed_commit(thin, &bio) {
            Commit::None => bio.end(BlkStatus::OK),
            Commit::Of(transaction) => {
                bio.data_mut().waits_for = transaction;
                worker.end_after_commit.push(bio);
            }
            Commit::Lost => bio.end(BlkStatus::IOERR),
        }
    }
}
