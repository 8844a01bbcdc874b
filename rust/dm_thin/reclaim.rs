// SPDX-License-Identifier: GPL-2.0

//! Giving the space of deleted thin devices back to the data device.
//!
//! The blocks that a deletion frees are noted, and discarded in the background once the deletion is committed.
//! A block is looked at again right before that: it must be free now, and free in what was committed last, so
//! that a crash cannot bring back anybody who wants it; and it must have [rested](crate::resting). From then on until
//! the discard has ended it is not allocated. What is noted is only in memory: after a crash, and after the pool was closed, these blocks are
//! free but not discarded.

use core::ops::Range;

use kernel::sync::Arc;
use thin_metadata::DataBlock;

use crate::{
    block_set::BlockSet,
    pass_down::{
        Cause,
        PassDown,
        Ranges, //
    },
    pool::Pool,
    worker::Worker,
    LOG_PREFIX, //
};

/// How many discards are on their way at a time. I/O of others shall get its turn.
const MAX_DISCARDS: usize = 4;

/// How much is discarded at a time, in sectors: 64 MiB, or one block if that is more.
const MAX_SECTORS: u64 = 64 << 11;

/// How many noted ranges are looked at in a round of the worker.
const MAX_RANGES: usize = 256;

/// What deletions have freed. The lock of the metadata protects it.
pub(crate) struct Reclaim {
    /// Freed in this transaction.
    deleted: BlockSet,
    /// Freed by a committed transaction; some may be in use again.
    pending: BlockSet,
    /// How many blocks were discarded since the pool was made.
    discarded: u64,
}

/// How far it is.
pub(crate) struct Progress {
    /// How many data blocks are still to be discarded.
    pub(crate) pending: u64,
    /// How many were discarded since the pool was made.
    pub(crate) discarded: u64,
}

impl Reclaim {
    pub(crate) fn new() -> Self {
        Self {
            deleted: BlockSet::new(),
            pending: BlockSet::new(),
            discarded: 0,
        }
    }

    /// A deletion has freed `blocks`. They are not discarded if there is no memory to note them.
    pub(crate) fn note(&mut self, blocks: &Range<DataBlock>) {
        let _ = self.deleted.insert(blocks);
    }

    /// The transaction is committed.
    pub(crate) fn committed(&mut self) {
        if !self.deleted.is_empty() {
            let _ = self.pending.append(&mut self.deleted);
            self.deleted.clear();
        }
    }

    /// The transaction is lost.
    pub(crate) fn aborted(&mut self) {
        self.deleted.clear();
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> Progress {
        Progress {
            pending: self.pending.len(),
            discarded: self.discarded,
        }
    }
}

impl Pool {
    /// Whether the space of devices that are deleted now is given back.
    pub(crate) fn discards_on_delete(&self) -> bool {
        self.wants_discard_on_delete()
            && self.data_dev.max_discard_sectors() >= self.block_size.sectors()
    }

    /// Starts some discards, if there is anything to be given back.
    pub(crate) fn reclaim(self: &Arc<Self>, worker: &mut Worker) {
        if self.metadata.read().reclaim.pending.is_empty() {
            return;
        }
        let mut looked_at = 0usize;
        while worker.deletions < MAX_DISCARDS && self.may_reclaim() {
            if looked_at == MAX_RANGES {
                self.wake();
                return;
            }
            looked_at = looked_at.wrapping_add(1);

            // The waker will come back if there is no memory.
            let mut ranges = Ranges::new();
            if ranges.make_room().is_err() {
                return;
            }
            let Ok(mut one) = PassDown::new(&self.data_dev, Cause::Deletion, ranges) else {
                return;
            };
            // The end of their rest wakes the worker.
            let Some(blocks) = self.next_to_reclaim(&mut worker.busy) else {
                return;
            };
            one.add(blocks);
            worker.deletions = worker.deletions.saturating_add(1);
            self.pass_down(worker, one);
        }
    }

    /// Takes the next blocks to be discarded, which are kept from use by then, unless they rest, or there is no memory; none
    /// may be left of a range that is in use again, or being discarded.
    fn next_to_reclaim(&self, busy: &mut BlockSet) -> Option<Range<DataBlock>> {
        let max = self.block_size.block_of(MAX_SECTORS).max(1);
        let mut changes = self.changes();
        let mut pool = changes.write();
        let pool = &mut *pool;
        let blocks = pool.reclaim.pending.next_run(0, max)?;
        let free = pool.metadata.find_free_range(blocks.start, blocks.end);
        let free = match free {
            Ok(Some(free)) => without_busy(free, busy),
            Ok(None) => blocks.end..blocks.end,
            Err(e) => {
                dm::log::err_limited!(
                    LOG_PREFIX,
                    "{}: cannot tell whether blocks of deleted devices are free: {e}",
                    self.name()
                );
                blocks.end..blocks.end
            }
        };
        let rested = self.resting.lock().before_first(free.clone());
        if rested.is_empty() && !free.is_empty() {
            return None;
        }
        if busy.insert(&rested).is_err() {
            busy.remove(&rested);
            return None;
        }
        pool.reclaim.pending.remove(&(blocks.start..rested.end));
        let nr = rested.end.saturating_sub(rested.start);
        pool.reclaim.discarded = pool.reclaim.discarded.saturating_add(nr);
        Some(rested)
    }

    fn may_reclaim(&self) -> bool {
        self.mode().may_change_metadata() && !self.is_suspended()
    }

    /// Tells user space if all has been given back.
    pub(crate) fn finish_reclaim(&self, worker: &Worker) {
        if worker.deletions == 0 && self.metadata.read().reclaim.pending.is_empty() {
            dm::log::info!(
                LOG_PREFIX,
                "{}: space of deleted thin devices was discarded",
                self.name()
            );
            self.event();
        }
    }
}

/// The blocks of `free` before the first busy one, or nothing if that is the first of all, at the end of the busy ones.
fn without_busy(free: Range<DataBlock>, busy: &BlockSet) -> Range<DataBlock> {
    match busy.next_run(free.start, u64::MAX) {
        Some(run) if run.start == free.start => {
            let end = run.end.min(free.end);
            end..end
        }
        Some(run) => free.start..run.start.min(free.end),
        None => free,
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_thin_reclaim)]
mod tests {
    use super::*;
    use kernel::prelude::*;

    #[test]
    fn busy_blocks_are_not_discarded_again() -> Result {
        let mut busy = BlockSet::new();
        assert_eq!(without_busy(3..9, &busy), 3..9);
        busy.insert(&(5..7))?;
        assert_eq!(without_busy(3..9, &busy), 3..5);
        assert_eq!(without_busy(5..9, &busy), 7..7);
        assert_eq!(without_busy(6..7, &busy), 7..7);
        assert_eq!(without_busy(7..9, &busy), 7..9);
        Ok(())
    }
}
