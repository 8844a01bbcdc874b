// SPDX-License-Identifier: GPL-2.0

//! Changes of reference counts that wait for their turn.

use crate::{
    block::BlockRange,
    error::Result,
    platform::{
        TryVec,
        Vec, //
    },
};

/// What to do to a count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// One more reference.
    Inc,
    /// One reference less.
    Dec,
}

/// A queue: the order matters when a block is allocated and let go at once.
#[derive(Default)]
pub(crate) struct Pending {
    changes: Vec<(Change, BlockRange)>,
    /// Room for the next ones, while those that were taken are applied.
    spare: Vec<(Change, BlockRange)>,
}

impl Pending {
    /// An empty queue.
    pub(crate) fn new() -> Self {
        Self {
            changes: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Adds a change at the end.
    pub(crate) fn push(&mut self, change: Change, blocks: BlockRange) -> Result {
        if blocks.is_empty() {
            return Ok(());
        }
        if let Some((last, range)) = self.changes.last_mut() {
            if *last == change && range.end == blocks.start {
                range.end = blocks.end;
                return Ok(());
            }
        }
        self.changes.try_push((change, blocks))
    }

    /// Takes all changes, if there are any. [`put_back`](Self::put_back) wants the memory back.
    pub(crate) fn take(&mut self) -> Option<Vec<(Change, BlockRange)>> {
        if self.changes.is_empty() {
            return None;
        }
        let spare = core::mem::take(&mut self.spare);
        Some(core::mem::replace(&mut self.changes, spare))
    }

    /// Takes memory back.
    pub(crate) fn put_back(&mut self, mut taken: Vec<(Change, BlockRange)>) {
        taken.clear();
        self.spare = taken;
    }
}

#[cfg_attr(dm_thin_kunit, kernel::macros::kunit_tests(persistent_data_pending))]
#[cfg(any(test, dm_thin_kunit))]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn keeps_order_and_joins_neighbours() -> Result {
        let mut p = Pending::new();
        p.push(Change::Inc, 3..4)?;
        p.push(Change::Inc, 4..6)?;
        p.push(Change::Dec, 6..7)?;
        p.push(Change::Dec, 9..9)?;
        let taken = p.take().ok_or(Error::Invalid)?;
        assert_eq!(taken.as_slice(), [(Change::Inc, 3..6), (Change::Dec, 6..7)]);
        assert!(p.take().is_none());
        // What was taken is not added to.
        p.push(Change::Dec, 7..8)?;
        p.put_back(taken);
        let taken = p.take().ok_or(Error::Invalid)?;
        assert_eq!(taken.as_slice(), [(Change::Dec, 7..8)]);
        assert!(p.take().is_none());
        Ok(())
    }
}
