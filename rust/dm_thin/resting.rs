// SPDX-License-Identifier: GPL-2.0

//! Data blocks that got free while bios may still be on their way to them.
//!
//! A bio gets to a data block by a mapping. When that is gone and the block is free, the bio may not have arrived yet, nor
//! one that came by the mapping of another volume which shared the block. So the block rests: it is neither
//! allocated nor discarded before all bios have ended that had entered [`InFlight`](crate::in_flight::InFlight) when its
//! last mapping went. Nobody waits for that but those who want this very block.
//!
//! Blocks rest by generations. Those that get free join the open one. The worker closes it and turns the set of bios in
//! flight to its other epoch; when the former epoch is drained, the closed generation has rested. There is at most
//! one that is closed, so a block rests for as long as two generations of bios at most.
//!
//! Mappings that bios use are removed by the worker alone, which notes it in the open generation. A block that gets free
//! while nothing was removed since the last generation had its rest has no bios on their way: that is so mostly for those
//! of a deleted device, which are many, and which need not be noted then.

use core::ops::Range;

use kernel::sync::Arc;
use thin_metadata::DataBlock;

use crate::{
    block_set::BlockSet,
    pass_down::PassDowns,
    pool::Pool,
    worker::Worker, //
};

/// Blocks that rest together.
struct Generation {
    /// Whether mappings were removed that bios may have used.
    removed: bool,
    /// Whether somebody waits for its end.
    wanted: bool,
    freed: BlockSet,
    /// Whether more blocks got free than could be noted: then nobody knows which may be used.
    incomplete: bool,
}

impl Generation {
    fn new() -> Self {
        Self {
            removed: false,
            wanted: false,
            freed: BlockSet::new(),
            incomplete: false,
        }
    }

    fn insert(&mut self, blocks: &Range<DataBlock>) {
        if self.freed.insert(blocks).is_err() {
            self.incomplete = true;
        }
    }

    fn contains(&self, block: DataBlock) -> bool {
        self.incomplete || self.freed.contains(block)
    }

    fn is_empty(&self) -> bool {
        self.freed.is_empty() && !self.incomplete
    }
}

/// A generation, by its number. The default is one that was over before there was a pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(crate) struct Rest(u64);

/// What is to be done next for those that rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// Nothing: nobody waits.
    Nothing,
    /// [`Resting::close`], and a turn of the set of bios in flight.
    Close,
    /// [`Resting::end`], once that set is drained.
    End,
}

/// All data blocks that rest.
pub(crate) struct Resting {
    open: Generation,
    closed: Option<Generation>,
    /// The number of the open generation. The closed one has the number before.
    number: Rest,
}

impl Resting {
    pub(crate) fn new() -> Self {
        Self {
            open: Generation::new(),
            closed: None,
            number: Rest(1),
        }
    }

    /// Mappings are removed that bios may have used.
    pub(crate) fn mappings_removed(&mut self) {
        self.open.removed = true;
    }

    /// Nothing refers to `blocks` any more.
    pub(crate) fn freed(&mut self, blocks: &Range<DataBlock>) {
        if self.open.removed {
            self.open.insert(blocks);
        } else if let Some(closed) = &mut self.closed {
            closed.insert(blocks);
        }
    }

    /// The generation after whose end no bio is on its way to what is free now. It will not be long.
    pub(crate) fn rest(&mut self) -> Rest {
        self.open.wanted = true;
        self.number
    }

    /// Has the open generation end soon if mappings were removed: what got free is wanted from now on, and what gets
    /// free later needs no rest.
    pub(crate) fn settle(&mut self) {
        self.open.wanted |= self.open.removed;
    }

    /// Whether a generation has ended.
    pub(crate) fn is_over(&self, rest: Rest) -> bool {
        match self.closed {
            Some(_) => rest.0.saturating_add(1) < self.number.0,
            None => rest.0 < self.number.0,
        }
    }

    /// Whether a generation is closed, or over.
    pub(crate) fn is_closed(&self, rest: Rest) -> bool {
        rest.0 < self.number.0
    }

    /// Whether `block` rests.
    pub(crate) fn contains(&self, block: DataBlock) -> bool {
        self.open.contains(block) || matches!(&self.closed, Some(closed) if closed.contains(block))
    }

    /// Whether any block rests.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty() && !matches!(&self.closed, Some(closed) if !closed.is_empty())
    }

    /// What of `blocks` comes before the first one that rests.
    pub(crate) fn before_first(&self, blocks: Range<DataBlock>) -> Range<DataBlock> {
        let generations = [Some(&self.open), self.closed.as_ref()];
        let end = generations
            .into_iter()
            .flatten()
            .fold(blocks.end, |end, generation| {
                if generation.incomplete {
                    return blocks.start;
                }
                match generation.freed.next_run(blocks.start, 1) {
                    Some(run) => end.min(run.start),
                    None => end,
                }
            });
        blocks.start..end.max(blocks.start)
    }

    /// What is to be done next.
    pub(crate) fn next(&self) -> Next {
        match &self.closed {
            Some(_) => Next::End,
            None if self.open.wanted => Next::Close,
            None => Next::Nothing,
        }
    }

    /// Closes the open generation, where [`next`](Self::next) says so. What gets free from now on joins the next one.
    pub(crate) fn close(&mut self) {
        let closed = core::mem::replace(&mut self.open, Generation::new());
        self.closed = Some(closed);
        self.number = Rest(self.number.0.wrapping_add(1));
    }

    /// The closed generation has had its rest.
    pub(crate) fn end(&mut self) {
        self.closed = None;
    }
}

/// What the worker does when blocks have rested: discards, by the generation that they wait for.
#[derive(Default)]
pub(crate) struct AfterRest {
    /// After the closed generation.
    pub(crate) closed: PassDowns,
    /// After the open one.
    pub(crate) open: PassDowns,
}

impl Pool {
    /// Goes on with the generations as far as possible. The last bio that is waited for wakes the worker.
    pub(crate) fn let_blocks_rest(self: &Arc<Self>, worker: &mut Worker) {
        loop {
            let next = self.resting.lock().next();
            match next {
                Next::Nothing => return,
                Next::Close => {
                    self.resting.lock().close();
                    // Whatever is in the closed generation was unmapped before.
                    self.in_flight.turn();
                    worker.after_rest.closed = core::mem::take(&mut worker.after_rest.open);
                }
                Next::End if !self.in_flight.is_drained() => return,
                Next::End => {
                    self.resting.lock().end();
                    let mut rested = core::mem::take(&mut worker.after_rest.closed);
                    while let Some(one) = rested.pop() {
                        self.pass_down(worker, one);
                    }
                    self.blocks_released(worker);
                }
            }
        }
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_thin_resting)]
mod tests {
    use super::*;

    #[test]
    fn blocks_rest_for_a_whole_generation() {
        let mut resting = Resting::new();
        assert_eq!(resting.next(), Next::Nothing);
        resting.mappings_removed();
        resting.freed(&(3..5));
        assert_eq!(resting.next(), Next::Nothing);
        let first = resting.rest();
        assert!(resting.contains(3) && !resting.contains(5) && !resting.is_over(first));
        assert_eq!(resting.next(), Next::Close);

        resting.close();
        assert!(resting.contains(3) && resting.is_closed(first) && !resting.is_over(first));
        assert_eq!(resting.next(), Next::End);
        resting.mappings_removed();
        resting.freed(&(7..8));
        let second = resting.rest();
        assert!(!resting.is_closed(second));

        resting.end();
        assert!(resting.is_over(first) && !resting.is_over(second));
        assert!(!resting.contains(3) && resting.contains(7) && !resting.is_empty());
        assert_eq!(resting.next(), Next::Close);
        resting.close();
        resting.end();
        assert!(resting.is_over(second) && resting.is_empty());
        assert_eq!(resting.next(), Next::Nothing);
    }

    #[test]
    fn what_no_bio_can_reach_needs_no_rest() {
        let mut resting = Resting::new();
        resting.freed(&(0..1000));
        assert!(resting.is_empty());

        // Others may have removed the mappings of a block before its last reference went.
        resting.mappings_removed();
        resting.freed(&(0..1));
        resting.settle();
        resting.close();
        resting.freed(&(8..9));
        assert!(resting.contains(8));
        resting.end();
        assert!(resting.is_empty());

        resting.settle();
        assert_eq!(resting.next(), Next::Nothing);
    }

    #[test]
    fn whoever_asks_for_a_rest_gets_its_end() {
        let mut resting = Resting::new();
        let rest = resting.rest();
        assert_eq!(resting.next(), Next::Close);
        resting.close();
        resting.end();
        assert!(resting.is_over(rest));
    }

    #[test]
    fn before_the_first_that_rests() {
        let mut resting = Resting::new();
        resting.mappings_removed();
        resting.freed(&(20..30));
        resting.close();
        resting.mappings_removed();
        resting.freed(&(15..16));
        assert_eq!(resting.before_first(0..40), 0..15);
        assert_eq!(resting.before_first(16..40), 16..20);
        assert_eq!(resting.before_first(25..40), 25..25);
        assert_eq!(resting.before_first(30..40), 30..40);
    }
}
