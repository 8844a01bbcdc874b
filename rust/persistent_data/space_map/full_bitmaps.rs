// SPDX-License-Identifier: GPL-2.0

//! Which bitmaps need not be looked into for free blocks.

use crate::{
    error::Result,
    platform::{
        TryVec,
        Vec, //
    },
};

/// The bitmaps that are known to have no free block.
///
/// A search for a free block leaves them out without reading anything of them, so a full device is searched once and
/// not again before some of it was freed. A bit for each bitmap: 512 KiB for as many as the largest metadata device
/// can hold, and only as far as full ones were found.
pub(crate) struct FullBitmaps {
    words: Vec<u64>,
}

impl FullBitmaps {
    /// None is known.
    pub(crate) fn new() -> Self {
        Self { words: Vec::new() }
    }

    /// Bitmap `i` has no free block.
    pub(crate) fn insert(&mut self, i: u64) -> Result {
        let (word, mask) = place(i);
        while self.words.len() <= word {
            self.words.try_push(0)?;
        }
        if let Some(word) = self.words.get_mut(word) {
            *word |= mask;
        }
        Ok(())
    }

    /// Bitmap `i` may have free blocks.
    pub(crate) fn remove(&mut self, i: u64) {
        let (word, mask) = place(i);
        if let Some(word) = self.words.get_mut(word) {
            *word &= !mask;
        }
    }

    /// The first bitmap from `i` on that may have free blocks.
    pub(crate) fn next_other(&self, i: u64) -> u64 {
        let (mut nr, mask) = place(i);
        // Those before `i` do not count.
        let mut before = mask.wrapping_sub(1);
        while let Some(word) = self.words.get(nr) {
            let others = !(word | before);
            if others != 0 {
                return nr as u64 * u64::from(u64::BITS) + u64::from(others.trailing_zeros());
            }
            before = 0;
            nr += 1;
        }
        i.max(self.words.len() as u64 * u64::from(u64::BITS))
    }
}

/// The word of bitmap `i`, and its bit there.
fn place(i: u64) -> (usize, u64) {
    let n = u64::from(u64::BITS);
    let word = usize::try_from(i / n).unwrap_or(usize::MAX);
    (word, 1 << (i % n))
}

#[cfg_attr(
    dm_thin_kunit,
    kernel::macros::kunit_tests(persistent_data_full_bitmaps)
)]
#[cfg(any(test, dm_thin_kunit))]
mod tests {
    use super::*;

    #[test]
    fn full_ones_are_left_out() -> Result {
        let mut full = FullBitmaps::new();
        assert_eq!(full.next_other(0), 0);
        assert_eq!(full.next_other(u64::MAX), u64::MAX);
        for i in (0..64).chain(66..130) {
            full.insert(i)?;
        }
        for (from, to) in [(0, 64), (63, 64), (64, 64), (65, 65), (66, 130), (129, 130)] {
            assert_eq!(full.next_other(from), to);
        }
        assert_eq!(full.next_other(131), 131);
        assert_eq!(full.next_other(500), 500);

        full.remove(100);
        full.remove(u64::MAX);
        assert_eq!(full.next_other(66), 100);
        assert_eq!(full.next_other(101), 130);
        full.insert(100)?;
        assert_eq!(full.next_other(66), 130);
        Ok(())
    }
}
