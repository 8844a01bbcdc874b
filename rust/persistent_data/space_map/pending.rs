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
    /// How many of the changes are taken already.
    nr_taken: usize,
}

impl Pending {
    /// An empty queue.
    pub(crate) fn new() -> Self {
        Self {
            changes: Vec::new(),
            nr_taken: 0,
        }
    }

    /// Adds a change at the end.
    pub(crate) fn push(&mut self, change: Change, blocks: BlockRange) -> Result {
        if blocks.is_empty() {
            return Ok(());
        }
        let waiting = self.changes.get_mut(self.nr_taken..).unwrap_or_default();
        if let Some((last, range)) = waiting.last_mut() {
            if *last == change && range.end == blocks.start {
                range.end = blocks.end;
                return Ok(());
            }
        }
        self.changes.try_push((change, blocks))
    }

    /// Takes the first change.
    pub(crate) fn pop(&mut self) -> Option<(Change, BlockRange)> {
        match self.changes.get(self.nr_taken) {
            Some(first) => {
                self.nr_taken += 1;
                Some(first.clone())
            }
            None => {
                self.changes.clear();
                self.nr_taken = 0;
                None
            }
        }
    }
}

#[cfg_attr(dm_thin_kunit, kernel::macros::kunit_tests(persistent_data_pending))]
#[cfg(any(test, dm_thin_kunit))]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_joins_neighbours() -> Result {
        let mut p = Pending::new();
        p.push(Change::Inc, 3..4)?;
        p.push(Change::Inc, 4..6)?;
        p.push(Change::Dec, 6..7)?;
        p.push(Change::Dec, 9..9)?;
        assert_eq!(p.pop(), Some((Change::Inc, 3..6)));
        p.push(Change::Dec, 7..8)?;
        assert_eq!(p.pop(), Some((Change::Dec, 6..8)));
        // What was taken is not added to.
        p.push(Change::Dec, 8..9)?;
        assert_eq!(p.pop(), Some((Change::Dec, 8..9)));
        assert_eq!(p.pop(), None);
        p.push(Change::Inc, 1..2)?;
        assert_eq!(p.pop(), Some((Change::Inc, 1..2)));
        assert_eq!(p.pop(), None);
        Ok(())
    }
}
