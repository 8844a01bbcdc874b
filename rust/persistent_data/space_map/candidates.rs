// SPDX-License-Identifier: GPL-2.0

//! Where a space map may still look for free blocks in a transaction.

use crate::{
    block::{
        BlockNr,
        BlockRange, //
    },
    error::Result,
    platform::{
        TryVec,
        Vec, //
    },
};

/// The blocks that were not looked at yet in this transaction.
///
/// Each block is looked at once in a transaction at most. So no block is handed out twice, and none that was
/// freed after it was handed out, whatever the bitmaps say by then.
///
/// A transaction starts where the last one stopped, goes on to the end and then from the beginning. Blocks
/// that are added come first.
pub(crate) struct Candidates {
    /// The ranges to look at, the next one last. None is empty.
    ranges: Vec<BlockRange>,
    /// One past the block that was handed out last.
    cursor: BlockNr,
    /// A block that is never looked at.
    left_out: Option<BlockNr>,
}

impl Candidates {
    /// The blocks from `begin` to `nr_blocks`, then those before.
    pub(crate) fn new(begin: BlockNr, nr_blocks: BlockNr) -> Result<Self> {
        let mut candidates = Self {
            // What `restart` needs, so that it cannot fail.
            ranges: Vec::try_with_room(3)?,
            cursor: begin,
            left_out: None,
        };
        candidates.restart(nr_blocks)?;
        Ok(candidates)
    }

    /// As [`new`](Self::new), without any blocks before some are added; `block` never becomes a candidate.
    pub(crate) fn leaving_out(block: BlockNr, begin: BlockNr) -> Result<Self> {
        Ok(Self {
            left_out: Some(block),
            ..Self::new(begin, 0)?
        })
    }

    /// Starts the next transaction.
    pub(crate) fn restart(&mut self, nr_blocks: BlockNr) -> Result {
        let cursor = self.cursor.min(nr_blocks);
        self.ranges.clear();
        self.add(0..cursor)?;
        self.add(cursor..nr_blocks)
    }

    /// Adds blocks, to be looked at before all others.
    pub(crate) fn add(&mut self, blocks: BlockRange) -> Result {
        match self.left_out {
            Some(block) if blocks.contains(&block) => {
                self.push(block.saturating_add(1)..blocks.end)?;
                self.push(blocks.start..block)
            }
            _ => self.push(blocks),
        }
    }

    fn push(&mut self, blocks: BlockRange) -> Result {
        if blocks.is_empty() {
            return Ok(());
        }
        self.ranges.try_push(blocks)
    }

    /// The range to look at next.
    pub(crate) fn current(&self) -> Option<BlockRange> {
        self.ranges.last().cloned()
    }

    /// Leaves out all blocks of the current range that are below `to`.
    pub(crate) fn skip_to(&mut self, to: BlockNr) {
        if let Some(range) = self.ranges.last_mut() {
            range.start = range.start.max(to);
            if range.is_empty() {
                self.ranges.pop();
            }
        }
    }

    /// Takes a block of the current range, and leaves out those before.
    pub(crate) fn take(&mut self, block: BlockNr) {
        self.take_to(block.saturating_add(1));
    }

    /// Takes the blocks of the current range that are below `end`, or some of them, and leaves out the others.
    pub(crate) fn take_to(&mut self, end: BlockNr) {
        self.cursor = end;
        self.skip_to(end);
    }

    /// Takes back blocks that were taken: they are looked at again, before all others.
    pub(crate) fn put_back(&mut self, blocks: BlockRange) -> Result {
        if blocks.end == self.cursor {
            self.cursor = blocks.start;
        }
        match self.ranges.last_mut() {
            Some(range) if range.start == blocks.end => {
                range.start = blocks.start;
                Ok(())
            }
            _ => self.add(blocks),
        }
    }
}

#[cfg_attr(dm_thin_kunit, kernel::macros::kunit_tests(persistent_data_candidates))]
#[cfg(any(test, dm_thin_kunit))]
mod tests {
    use super::*;

    #[test]
    fn goes_round_once() -> Result {
        let mut c = Candidates::new(6, 10)?;
        assert_eq!(c.current(), Some(6..10));
        c.take(7);
        assert_eq!(c.current(), Some(8..10));
        c.skip_to(10);
        assert_eq!(c.current(), Some(0..6));
        c.take(5);
        assert_eq!(c.current(), None);

        c.restart(10)?;
        assert_eq!(c.current(), Some(6..10));
        c.take(9);
        c.restart(10)?;
        assert_eq!(c.current(), Some(0..10));
        Ok(())
    }

    #[test]
    fn a_block_that_is_left_out_never_comes() -> Result {
        for block in 0..7 {
            let mut c = Candidates::leaving_out(block, 4)?;
            assert_eq!(c.current(), None);
            for nr_blocks in [0, 6, 6] {
                c.restart(nr_blocks)?;
                let mut seen = [false; 6];
                while let Some(range) = c.current() {
                    if let Some(seen) = seen.get_mut(range.start as usize) {
                        *seen = true;
                    }
                    c.take(range.start);
                }
                for (i, seen) in seen.iter().enumerate() {
                    assert_eq!(*seen, i as u64 != block && (i as u64) < nr_blocks);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn blocks_that_are_put_back_come_first() -> Result {
        let mut c = Candidates::new(0, 10)?;
        c.take_to(5);
        assert_eq!(c.current(), Some(5..10));
        c.put_back(3..5)?;
        assert_eq!(c.current(), Some(3..10));
        c.put_back(0..2)?;
        assert_eq!(c.current(), Some(0..2));
        c.take_to(2);
        assert_eq!(c.current(), Some(3..10));

        // The next transaction begins there, too.
        c.take_to(10);
        c.put_back(8..10)?;
        c.restart(10)?;
        assert_eq!(c.current(), Some(8..10));
        Ok(())
    }

    #[test]
    fn added_blocks_come_first() -> Result {
        let mut c = Candidates::new(2, 4)?;
        c.add(4..6)?;
        assert_eq!(c.current(), Some(4..6));
        c.take(4);
        c.take(5);
        assert_eq!(c.current(), Some(2..4));
        c.restart(6)?;
        assert_eq!(c.current(), Some(0..6));
        Ok(())
    }
}
