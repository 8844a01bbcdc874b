// SPDX-License-Identifier: GPL-2.0

//! Sets of blocks.

use crate::error::{
    Error,
    Result, //
};

/// A set of the numbers below a limit, of one bit for each.
pub struct Bits {
    words: Vec<u64>,
    len: u64,
}

impl Bits {
    /// An empty set of numbers below `len`.
    pub fn new(len: u64) -> Result<Self> {
        let no_memory = || Error::Metadata(persistent_data::Error::NoMemory.into());
        let nr_words = usize::try_from(len.div_ceil(64)).map_err(|_| no_memory())?;
        let mut words = Vec::new();
        words.try_reserve_exact(nr_words).map_err(|_| no_memory())?;
        words.resize(nr_words, 0);
        Ok(Self { words, len })
    }

    /// What all numbers are below.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no number that it could hold.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it holds `n`.
    pub fn has(&self, n: u64) -> bool {
        let word = usize::try_from(n / 64).ok().and_then(|i| self.words.get(i));
        word.is_some_and(|word| word >> (n % 64) & 1 == 1)
    }

    /// Adds `n`; says whether it was not there. A number that is too large is not added.
    pub fn add(&mut self, n: u64) -> bool {
        if n >= self.len {
            return false;
        }
        let word = usize::try_from(n / 64).ok();
        let Some(word) = word.and_then(|i| self.words.get_mut(i)) else {
            return false;
        };
        let bit = 1 << (n % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// The numbers that it holds, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        (0..)
            .step_by(64)
            .zip(&self.words)
            .flat_map(|(first, &word)| {
                (0..64)
                    .filter(move |bit| word >> bit & 1 == 1)
                    .map(move |bit| first + bit)
                    // So words of zeroes take no time.
                    .take(word.count_ones() as usize)
            })
    }

    /// How many numbers it holds.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_there_once_added() {
        let mut bits = Bits::new(130).expect("memory");
        for n in [0, 1, 63, 64, 129] {
            assert!(!bits.has(n));
            assert!(bits.add(n));
            assert!(!bits.add(n));
            assert!(bits.has(n));
        }
        assert!(bits.iter().eq([0, 1, 63, 64, 129]));
        assert!(!bits.add(130));
        assert!(!bits.add(u64::MAX));
        assert!(!bits.has(130) && !bits.has(191) && !bits.has(u64::MAX) && !bits.has(2));
        assert_eq!((bits.count(), bits.len(), bits.is_empty()), (5, 130, false));
        assert!(!Bits::new(0).expect("memory").add(0));
        assert!(Bits::new(u64::MAX).is_err());
    }
}
