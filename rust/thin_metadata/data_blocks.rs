// SPDX-License-Identifier: GPL-2.0

//! What mappings own: references to data blocks.

use core::ops::Range;

use persistent_data::{
    btree::{
        for_runs,
        ValueType, //
    },
    platform::{
        TryVec,
        Vec, //
    },
    space_map::DiskSpaceMap,
    transaction::Transaction, //
};

use crate::{
    format::BlockTime,
    mapping::DataBlock, //
};

/// Data blocks whose last reference went away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Freed {
    /// The blocks.
    pub blocks: Range<DataBlock>,
    /// Whether another device, or a metadata snapshot, may have referred to them when the transaction began: then
    /// their content is still wanted should the transaction not be committed.
    pub maybe_shared: bool,
}

/// How many runs wait at most.
const MAX_WAITING: usize = 4096;

/// What mappings own: references to data blocks.
///
/// References that go away wait, until there are many of them or the [`finish`](Self::finish), so that counts next to
/// each other are changed together.
pub(crate) struct DataBlocks<'s> {
    sm: &'s mut DiskSpaceMap,
    /// Told of the blocks that get free.
    freed: Option<&'s mut dyn FnMut(Freed)>,
    /// When the device was last part of a snapshot: mappings that are older may have been shared.
    snapshotted_time: u32,
    /// What loses a reference, but for the last run.
    waiting: Vec<Run>,
    last: Option<Run>,
}

/// A run of blocks that lose a reference, which sorts by its first block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Run(u64);

impl Run {
    const LEN_BITS: u32 = 23;
    const MAX_LEN: u64 = (1 << Self::LEN_BITS) - 1;

    /// Data blocks have 40 bits.
    fn new(block: DataBlock, maybe_shared: bool) -> Self {
        Self((block << (Self::LEN_BITS + 1)) | (1 << 1) | u64::from(maybe_shared))
    }

    fn len(self) -> u64 {
        (self.0 >> 1) & Self::MAX_LEN
    }

    fn maybe_shared(self) -> bool {
        self.0 & 1 != 0
    }

    fn blocks(self) -> Range<DataBlock> {
        let start = self.0 >> (Self::LEN_BITS + 1);
        start..start + self.len()
    }

    /// Adds what begins where this ends; whether that is so.
    fn join(&mut self, other: Self) -> bool {
        let fits = self.blocks().end == other.blocks().start
            && self.maybe_shared() == other.maybe_shared()
            && self.len() + other.len() <= Self::MAX_LEN;
        if fits {
            self.0 += other.len() << 1;
        }
        fits
    }
}

impl<'s> DataBlocks<'s> {
    pub(crate) fn new(sm: &'s mut DiskSpaceMap) -> Self {
        Self {
            sm,
            freed: None,
            snapshotted_time: 0,
            waiting: Vec::new(),
            last: None,
        }
    }

    /// For mappings that go away for good.
    pub(crate) fn telling(
        sm: &'s mut DiskSpaceMap,
        freed: &'s mut dyn FnMut(Freed),
        snapshotted_time: u32,
    ) -> Self {
        Self {
            freed: Some(freed),
            snapshotted_time,
            ..Self::new(sm)
        }
    }

    /// Takes the references that wait. Must come last.
    pub(crate) fn finish<'b, T: Transaction<'b>>(&mut self, tx: &mut T) -> persistent_data::Result {
        if let Some(last) = self.last.take() {
            self.take_all(tx, core::iter::once(last))?;
        }
        self.take_waiting(tx)
    }

    fn take_waiting<'b, T: Transaction<'b>>(&mut self, tx: &mut T) -> persistent_data::Result {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut waiting = core::mem::take(&mut self.waiting);
        waiting.sort_unstable();
        for maybe_shared in [false, true] {
            let runs = waiting.iter().copied();
            self.take_all(tx, runs.filter(|run| run.maybe_shared() == maybe_shared))?;
        }
        waiting.clear();
        self.waiting = waiting;
        Ok(())
    }

    /// Takes the references of runs, which are all maybe shared or none.
    fn take_all<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        runs: impl Iterator<Item = Run> + Clone,
    ) -> persistent_data::Result {
        let Some(maybe_shared) = runs.clone().next().map(Run::maybe_shared) else {
            return Ok(());
        };
        let freed = &mut self.freed;
        self.sm.dec_all(tx, runs.map(Run::blocks), &mut |blocks| {
            if let Some(freed) = freed {
                freed(Freed {
                    blocks,
                    maybe_shared,
                });
            }
        })
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
        let snapshotted_time = self.snapshotted_time;
        let mut runs = values
            .iter()
            .map(|value| Run::new(value.block(), value.time() < snapshotted_time));
        let Some(mut last) = self.last.take().or_else(|| runs.next()) else {
            return Ok(());
        };
        for run in runs {
            if last.join(run) {
                continue;
            }
            let full = self.waiting.len() >= MAX_WAITING;
            if full || self.waiting.try_push(last).is_err() {
                self.take_waiting(tx)?;
                self.take_all(tx, core::iter::once(last))?;
            }
            last = run;
        }
        self.last = Some(last);
        Ok(())
    }

    fn equal(&self, a: &BlockTime, b: &BlockTime) -> bool {
        a.block() == b.block()
    }
}

#[cfg(any(test, dm_thin_kunit))]
#[cfg_attr(dm_thin_kunit, kernel::macros::kunit_tests(thin_metadata_data_blocks))]
mod tests {
    use super::*;

    #[test]
    fn neighbours_join() {
        let max = (1 << 40) - 1;
        let mut run = Run::new(max - 1, true);
        assert!(!run.join(Run::new(max, false)));
        assert!(!run.join(Run::new(max - 2, true)));
        assert!(run.join(Run::new(max, true)));
        assert_eq!(run.blocks(), max - 1..max + 1);
        assert!(run.maybe_shared() && !Run::new(7, false).maybe_shared());
        assert!(Run::new(3, true) < Run::new(4, false));
    }

    #[test]
    fn runs_have_an_end() {
        let mut run = Run::new(0, false);
        let mut len = 1;
        while run.join(Run::new(len, false)) {
            len += 1;
        }
        assert_eq!(run.blocks(), 0..Run::MAX_LEN);
    }
}
