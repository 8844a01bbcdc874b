// SPDX-License-Identifier: GPL-2.0

//! The blocks that may be written in place in a transaction.

use crate::{
    block::BlockNr,
    error::{
        Error,
        Result, //
    },
    platform::{
        TryVec,
        Vec, //
    },
};

/// Stands for an empty slot; no device is that large.
const EMPTY: BlockNr = BlockNr::MAX;

/// The fewest slots of a set that is not empty.
const MIN_SLOTS: usize = 64;

/// More slots than this are given back when the set is cleared.
const MAX_IDLE_SLOTS: usize = 4096;

/// A set of block numbers.
///
/// A hash table with open addressing and linear probing, at most three quarters full. The number of slots is
/// zero or a power of two.
#[derive(Default)]
pub(crate) struct ShadowSet {
    slots: Vec<BlockNr>,
    len: usize,
}

impl ShadowSet {
    /// An empty set.
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            len: 0,
        }
    }

    /// Whether the set has `block`.
    pub(crate) fn contains(&self, block: BlockNr) -> bool {
        matches!(self.find(block), Some((_, true)))
    }

    /// Adds `block`.
    ///
    /// Gives [`Error::NoMemory`] and changes nothing if the set would have to grow and cannot.
    pub(crate) fn insert(&mut self, block: BlockNr) -> Result {
        if block == EMPTY {
            return Err(Error::OutOfBounds(block));
        }
        if (self.len + 1) * 4 > self.slots.len() * 3 {
            self.grow()?;
        }
        if let Some((slot, false)) = self.find(block) {
            if let Some(s) = self.slots.get_mut(slot) {
                *s = block;
                self.len += 1;
            }
        }
        Ok(())
    }

    /// Empties the set.
    pub(crate) fn clear(&mut self) {
        if self.slots.len() > MAX_IDLE_SLOTS {
            self.slots = Vec::new();
        }
        self.slots.fill(EMPTY);
        self.len = 0;
    }

    /// The slot that holds `block` and true, or the empty one for it and false.
    fn find(&self, block: BlockNr) -> Option<(usize, bool)> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut slot = hash(block) & mask;
        // There always is an empty slot; the bound makes that obvious.
        for _ in 0..self.slots.len() {
            match self.slots.get(slot) {
                Some(&b) if b == block => return Some((slot, true)),
                Some(&EMPTY) | None => return Some((slot, false)),
                Some(_) => slot = (slot + 1) & mask,
            }
        }
        None
    }

    fn grow(&mut self) -> Result {
        let n = (self.slots.len() * 2).max(MIN_SLOTS);
        let mut bigger = Self {
            slots: Vec::try_filled(EMPTY, n)?,
            len: 0,
        };
        for &block in self.slots.iter().filter(|&&b| b != EMPTY) {
            bigger.insert(block)?;
        }
        *self = bigger;
        Ok(())
    }
}

/// Spreads neighbours: the middle bits of a multiplication by the golden ratio.
fn hash(block: BlockNr) -> usize {
    (block.wrapping_mul(0x61c8_8646_80b5_83eb) >> 24) as usize
}

#[cfg_attr(dm_thin_kunit, kernel::macros::kunit_tests(persistent_data_shadow_set))]
#[cfg(any(test, dm_thin_kunit))]
mod tests {
    use super::*;

    #[test]
    fn remembers() -> Result {
        let mut set = ShadowSet::new();
        assert!(!set.contains(0));
        for i in 0..1000 {
            set.insert(i * 7)?;
            set.insert(i * 7)?;
        }
        assert_eq!(set.len, 1000);
        for i in 0..7000 {
            assert_eq!(set.contains(i), i % 7 == 0);
        }
        set.clear();
        assert!(!set.contains(0));
        set.insert(0)?;
        assert!(set.contains(0));
        assert_eq!(
            set.insert(BlockNr::MAX),
            Err(Error::OutOfBounds(BlockNr::MAX))
        );
        assert!(!set.contains(BlockNr::MAX - 1));
        Ok(())
    }
}
