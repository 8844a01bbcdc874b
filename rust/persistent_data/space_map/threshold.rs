// SPDX-License-Identifier: GPL-2.0

//! A watch over the number of free blocks.

use crate::block::BlockNr;

/// Tells once when the number of free blocks falls to a threshold, and again only after it was above.
pub(crate) struct Threshold {
    threshold: Option<BlockNr>,
    /// The number of free blocks that was last seen.
    current: Option<BlockNr>,
    crossed: bool,
}

impl Threshold {
    /// A watch without a threshold.
    pub(crate) fn new() -> Self {
        Self {
            threshold: None,
            current: None,
            crossed: false,
        }
    }

    /// Sets the threshold.
    pub(crate) fn set(&mut self, blocks: BlockNr) {
        self.threshold = Some(blocks);
    }

    /// Takes notice of the number of free blocks.
    pub(crate) fn update(&mut self, nr_free: BlockNr) {
        if self.is_below(nr_free) && !self.current.is_some_and(|c| self.is_below(c)) {
            self.crossed = true;
        }
        self.current = Some(nr_free);
    }

    /// Whether the threshold was crossed since this was last asked.
    pub(crate) fn take_crossed(&mut self) -> bool {
        core::mem::take(&mut self.crossed)
    }

    fn is_below(&self, nr_free: BlockNr) -> bool {
        self.threshold.is_some_and(|t| nr_free <= t)
    }
}

#[cfg_attr(dm_thin_kunit, kernel::macros::kunit_tests(persistent_data_threshold))]
#[cfg(any(test, dm_thin_kunit))]
mod tests {
    use super::*;

    #[test]
    fn triggers_on_the_edge() {
        let mut t = Threshold::new();
        t.update(0);
        assert!(!t.take_crossed());

        let mut t = Threshold::new();
        t.set(10);
        t.update(11);
        assert!(!t.take_crossed());
        t.update(10);
        assert!(t.take_crossed());
        assert!(!t.take_crossed());
        t.update(9);
        assert!(!t.take_crossed());
        t.update(11);
        t.update(3);
        assert!(t.take_crossed());

        // What was last seen counts as above a threshold that was set lower since.
        t.set(2);
        t.update(2);
        assert!(t.take_crossed());
    }
}
