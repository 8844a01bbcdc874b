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

/// Marks a block that may have more than one owner; no device is that large.
const REFERENCED: BlockNr = 1 << 63;

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

    /// Whether the set has `block`, and [`add_reference`](Self::add_reference) was not called for it.
    pub(crate) fn contains_sole(&self, block: BlockNr) -> bool {
        match self.find(block) {
            Some((slot, true)) => self.slots.get(slot) == Some(&block),
            _ => false,
        }
    }

    /// Takes notice that `block` has got one more owner.
    pub(crate) fn add_reference(&mut self, block: BlockNr) {
        if let Some((slot, true)) = self.find(block) {
            if let Some(slot) = self.slots.get_mut(slot) {
                *slot |= REFERENCED;
            }
        }
    }

    /// Adds `block`.
    ///
    /// Gives [`Error::NoMemory`] and changes nothing if the set would have to grow and cannot.
    pub(crate) fn insert(&mut self, block: BlockNr) -> Result {
        if block >= REFERENCED {
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
                Some(&EMPTY) | None => return Some((slot, false)),
                Some(&b) if b & !REFERENCED == block => return Some((slot, true)),
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
        for &slot in self.slots.iter().filter(|&&b| b != EMPTY) {
            let block = slot & !REFERENCED;
            bigger.insert(block)?;
            if slot != block {
                bigger.add_reference(block);
            }
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

    #[test]
    fn tells_who_may_have_more_owners() -> Result {
        let mut set = ShadowSet::new();
        set.add_reference(3);
        assert!(!set.contains(3));
        for i in 0..1000 {
            set.insert(i)?;
            if i % 3 == 0 {
                set.add_reference(i);
            }
            // What is there already stays what it is.
            set.insert(i)?;
        }
        for i in 0..1000 {
            assert!(set.contains(i));
            assert_eq!(set.contains_sole(i), i % 3 != 0);
        }
        assert!(!set.contains_sole(1000));
        Ok(())
    }
}
