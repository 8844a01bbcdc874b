// SPDX-License-Identifier: GPL-2.0

//! Blocks of small reference counts.
//!
//! ```text
//! offset  size
//!      0     4  checksum, mixed with 240779
//!      4     4  not used
//!      8     8  the block that the bitmap lives in
//!     16  4080  510 words of 8 bytes, little-endian, each with 32 entries of two bits
//! ```
//!
//! Entry `i` of a word has its high bit at bit `2 * i` and its low bit at bit `2 * i + 1`. Its value is the
//! reference count from 0 to 2, or [`MANY`] for one that the tree of reference counts holds.

use core::ops::Range;

use zerocopy::{
    byteorder::little_endian::{
        U32,
        U64, //
    },
    transmute_mut, transmute_ref,
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

use crate::block::{
    check_checksum,
    check_location,
    seal_checksum,
    BlockData,
    Validator, //
};

/// The number of entries in a word.
pub(crate) const ENTRIES_PER_WORD: u32 = 32;

const NR_WORDS: usize = 510;

/// The number of entries in a bitmap.
pub(crate) const NR_ENTRIES: u32 = NR_WORDS as u32 * ENTRIES_PER_WORD;

/// The value of an entry whose count does not fit.
pub(crate) const MANY: u32 = 3;

const CHECKSUM_XOR: u32 = 240_779;

/// Checks and seals bitmaps.
pub(crate) static VALIDATOR: Validator = Validator {
    name: "bitmap",
    check: |data, block| {
        check_location(block, Bitmap::of(data).block.get())?;
        check_checksum(data, block, CHECKSUM_XOR)
    },
    prepare: |data, block| {
        Bitmap::of_mut(data).block = block.into();
        seal_checksum(data, CHECKSUM_XOR);
    },
};

/// The content of a bitmap's block.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Bitmap {
    checksum: U32,
    not_used: U32,
    block: U64,
    words: [U64; NR_WORDS],
}

impl Bitmap {
    /// The bitmap in a block.
    pub(crate) fn of(data: &BlockData) -> &Self {
        transmute_ref!(data)
    }

    /// The bitmap in a block, to be changed.
    pub(crate) fn of_mut(data: &mut BlockData) -> &mut Self {
        transmute_mut!(data)
    }

    /// The word with the given number; all in use beyond the end.
    pub(crate) fn word(&self, word: u32) -> Word {
        Word(self.words.get(word as usize).map_or(u64::MAX, |w| w.get()))
    }

    /// Changes the word with the given number.
    pub(crate) fn set_word(&mut self, word: u32, to: Word) {
        if let Some(w) = self.words.get_mut(word as usize) {
            w.set(to.0);
        }
    }

    /// The value of an entry.
    pub(crate) fn get(&self, entry: u32) -> u32 {
        self.word(entry / ENTRIES_PER_WORD)
            .get(entry % ENTRIES_PER_WORD)
    }

    /// Changes the value of an entry.
    pub(crate) fn set(&mut self, entry: u32, value: u32) {
        let mut word = self.word(entry / ENTRIES_PER_WORD);
        word.set(entry % ENTRIES_PER_WORD, value);
        self.set_word(entry / ENTRIES_PER_WORD, word);
    }

    /// The number of entries that are zero.
    pub(crate) fn nr_free(&self) -> u32 {
        self.words.iter().map(|w| Word(w.get()).nr_free()).sum()
    }

    /// The first run of `entries` that are zero, in `other` as well, but no more than `max`, which is not zero.
    pub(crate) fn find_free_run(
        &self,
        entries: Range<u32>,
        other: Option<&Bitmap>,
        max: u32,
    ) -> Option<Range<u32>> {
        let start = self.find_free(entries.clone(), other)?;
        let limit = entries.end.min(start.saturating_add(max));
        let mut end = start;
        while end < limit {
            let in_word = end % ENTRIES_PER_WORD;
            let used_at = self
                .free_word(end / ENTRIES_PER_WORD, other)
                .find_used(in_word);
            end += used_at - in_word;
            if used_at < ENTRIES_PER_WORD {
                break;
            }
        }
        Some(start..end.min(limit))
    }

    /// The word with the given number, with what is not zero in `other` as well.
    fn free_word(&self, word: u32, other: Option<&Bitmap>) -> Word {
        let used = other.map_or(0, |o| o.word(word).0);
        Word(self.word(word).0 | used)
    }

    /// The first of `entries` that is zero, in `other` as well.
    fn find_free(&self, entries: Range<u32>, other: Option<&Bitmap>) -> Option<u32> {
        let mut entry = entries.start;
        while entry < entries.end {
            let word = entry / ENTRIES_PER_WORD;
            let word = self.free_word(word, other);
            let base = entry - entry % ENTRIES_PER_WORD;
            if let Some(found) = word.find_free(entry - base) {
                let found = base + found;
                return (found < entries.end).then_some(found);
            }
            entry = base + ENTRIES_PER_WORD;
        }
        None
    }
}

/// Some of the entries of a word: entry `i` is bit `2 * i`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entries(u64);

impl Entries {
    /// Those within a range, which ends at [`ENTRIES_PER_WORD`] at most.
    pub(crate) fn within(range: Range<u32>) -> Self {
        let below = |end: u32| match 1u64.checked_shl(2 * end) {
            Some(bit) => bit - 1,
            None => u64::MAX,
        };
        Self(below(range.end) & !below(range.start) & Word::EVEN_BITS)
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    pub(crate) fn len(self) -> u32 {
        // Not every processor that the kernel is built for counts bits, and often it is one.
        match self.0 & self.0.wrapping_sub(1) {
            0 => u32::from(self.0 != 0),
            _ => self.0.count_ones(),
        }
    }

    /// The first one.
    pub(crate) fn first(self) -> Option<u32> {
        (self.0 != 0).then(|| self.0.trailing_zeros() / 2)
    }

    /// The first one from `begin` on, which is below [`ENTRIES_PER_WORD`], that is not among these.
    pub(crate) fn first_missing(self, begin: u32) -> u32 {
        begin + (!(self.0 >> (2 * begin)) & Word::EVEN_BITS).trailing_zeros() / 2
    }

    /// One bit for each entry.
    pub(crate) fn to_bits(self) -> u32 {
        if self.is_empty() {
            return 0;
        }
        let mut bits = self.0;
        for (shift, mask) in [
            (1, 0x3333_3333_3333_3333),
            (2, 0x0f0f_0f0f_0f0f_0f0f),
            (4, 0x00ff_00ff_00ff_00ff),
            (8, 0x0000_ffff_0000_ffff),
            (16, 0x0000_0000_ffff_ffff),
        ] {
            bits = (bits | (bits >> shift)) & mask;
        }
        bits as u32
    }
}

/// What became of entries that got one more.
pub(crate) struct Incremented {
    /// Those that were zero.
    pub(crate) allocated: Entries,
    /// Those that became [`MANY`].
    pub(crate) grown: Entries,
    /// Those that were [`MANY`], and were left alone.
    pub(crate) many: Entries,
}

/// What became of entries that got one less.
pub(crate) struct Decremented {
    /// Those that were zero, and were left alone.
    pub(crate) zero: Entries,
    /// Those that became zero.
    pub(crate) freed: Entries,
    /// Those that were [`MANY`], and were left alone.
    pub(crate) many: Entries,
}

/// A word of entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Word(u64);

impl Word {
    const EVEN_BITS: u64 = 0x5555_5555_5555_5555;

    /// The value of entry `i`, which is below [`ENTRIES_PER_WORD`].
    pub(crate) fn get(self, i: u32) -> u32 {
        let bits = (self.0 >> (2 * i)) as u32;
        ((bits & 1) << 1) | ((bits >> 1) & 1)
    }

    /// Changes the value of entry `i`, which is below [`ENTRIES_PER_WORD`].
    pub(crate) fn set(&mut self, i: u32, value: u32) {
        let bits = u64::from(((value & 1) << 1) | ((value >> 1) & 1));
        self.0 = (self.0 & !(3 << (2 * i))) | (bits << (2 * i));
    }

    /// One bit for each entry that is zero, at the place of the entry's high bit.
    fn free(self) -> u64 {
        !(self.0 | (self.0 >> 1)) & Self::EVEN_BITS
    }

    fn nr_free(self) -> u32 {
        self.free().count_ones()
    }

    /// The entries as numbers of two bits, entry `i` from bit `2 * i` on; and back, as it is its own inverse.
    fn swap(bits: u64) -> u64 {
        ((bits & Self::EVEN_BITS) << 1) | ((bits >> 1) & Self::EVEN_BITS)
    }

    /// Adds one to all of `entries` that are not [`MANY`].
    pub(crate) fn inc(&mut self, entries: Entries) -> Incremented {
        let counts = Self::swap(self.0);
        let (low, high) = (counts, counts >> 1);
        let many = entries.0 & low & high;
        // None of those that are left overflows.
        let inc = entries.0 & !many;
        self.0 = Self::swap(counts.wrapping_add(inc));
        Incremented {
            allocated: Entries(inc & !(low | high)),
            grown: Entries(inc & high),
            many: Entries(many),
        }
    }

    /// Takes one from all of `entries` that are neither zero nor [`MANY`].
    pub(crate) fn dec(&mut self, entries: Entries) -> Decremented {
        let counts = Self::swap(self.0);
        let (low, high) = (counts, counts >> 1);
        let many = entries.0 & low & high;
        let zero = entries.0 & !(low | high);
        // None of those that are left gets below zero.
        let dec = entries.0 & !many & !zero;
        self.0 = Self::swap(counts.wrapping_sub(dec));
        Decremented {
            zero: Entries(zero),
            freed: Entries(dec & low),
            many: Entries(many),
        }
    }

    /// The first entry that is not zero, from `begin` on, which is below [`ENTRIES_PER_WORD`]; that if there is none.
    fn find_used(self, begin: u32) -> u32 {
        Entries(self.free()).first_missing(begin)
    }

    /// The first entry that is zero, from `begin` on, which is below [`ENTRIES_PER_WORD`].
    fn find_free(self, begin: u32) -> Option<u32> {
        let free = self.free() & (u64::MAX << (2 * begin));
        (free != 0).then(|| free.trailing_zeros() / 2)
    }
}

#[cfg_attr(dm_thin_kunit, kernel::macros::kunit_tests(persistent_data_bitmap))]
#[cfg(any(test, dm_thin_kunit))]
mod tests {
    use super::*;
    use crate::{
        block::BLOCK_SIZE,
        platform::try_box,
        Error,
        Result, //
    };

    #[test]
    fn bit_order() {
        let mut word = Word(0);
        word.set(0, 1);
        assert_eq!(word, Word(0b10));
        word.set(0, 2);
        assert_eq!(word, Word(0b01));
        word.set(31, 1);
        assert_eq!(word, Word(1 << 63 | 1));
        word.set(31, 3);
        word.set(0, 0);
        assert_eq!(word, Word(3 << 62));
        assert_eq!(word.get(31), MANY);
        assert_eq!(word.get(30), 0);
    }

    #[test]
    fn entries_of_a_word_are_changed_together() {
        // Each value next to each other one.
        let values = |i: u32| (i ^ (i >> 2) ^ (i >> 4)) & 3;
        for range in [0..32, 0..1, 31..32, 5..23, 7..7] {
            let (mut inc, mut dec) = (Word(0), Word(0));
            for i in 0..ENTRIES_PER_WORD {
                inc.set(i, values(i));
                dec.set(i, values(i));
            }
            let entries = Entries::within(range.clone());
            assert_eq!(entries.len(), range.end - range.start);
            assert_eq!(entries.first(), range.clone().next());
            let incremented = inc.inc(entries);
            let decremented = dec.dec(entries);
            let has = |entries: Entries, i: u32| entries.to_bits() & (1 << i) != 0;
            for i in 0..ENTRIES_PER_WORD {
                let (old, within) = (values(i), range.contains(&i));
                let changed = within && old != MANY;
                assert_eq!(inc.get(i), old + u32::from(changed));
                assert_eq!(dec.get(i), old - u32::from(changed && old != 0));
                assert_eq!(has(incremented.allocated, i), within && old == 0);
                assert_eq!(has(incremented.grown, i), within && old == 2);
                assert_eq!(has(incremented.many, i), within && old == MANY);
                assert_eq!(has(decremented.zero, i), within && old == 0);
                assert_eq!(has(decremented.freed, i), within && old == 1);
                assert_eq!(has(decremented.many, i), within && old == MANY);
            }
        }
        let some = Entries::within(3..9);
        assert_eq!(some.first_missing(0), 0);
        assert_eq!(some.first_missing(3), 9);
        assert_eq!(some.first_missing(8), 9);
        assert_eq!(Entries::within(0..32).first_missing(5), 32);
        assert!(Entries::within(4..4).is_empty() && !some.is_empty());
    }

    #[test]
    fn finds_free_entries() -> Result {
        let mut a = try_box([0; BLOCK_SIZE])?;
        let mut b = try_box([0; BLOCK_SIZE])?;
        let a = Bitmap::of_mut(&mut a);
        let b = Bitmap::of_mut(&mut b);
        assert_eq!(a.nr_free(), NR_ENTRIES);
        for i in 0..100 {
            a.set(i, 1 + i % 3);
        }
        for i in 100..200 {
            b.set(i, 1 + i % 3);
        }
        assert_eq!(a.nr_free(), NR_ENTRIES - 100);
        assert_eq!(a.find_free(0..NR_ENTRIES, None), Some(100));
        assert_eq!(a.find_free(0..100, None), None);
        assert_eq!(a.find_free(0..NR_ENTRIES, Some(b)), Some(200));
        assert_eq!(a.find_free(0..200, Some(b)), None);
        assert_eq!(a.find_free(250..251, Some(b)), Some(250));
        assert_eq!(
            a.find_free(NR_ENTRIES - 1..NR_ENTRIES, None),
            Some(NR_ENTRIES - 1)
        );
        assert_eq!(a.find_free(NR_ENTRIES..NR_ENTRIES, None), None);

        a.set(300, 3);
        b.set(310, 1);
        assert_eq!(a.find_free_run(0..NR_ENTRIES, None, 1000), Some(100..300));
        assert_eq!(a.find_free_run(0..NR_ENTRIES, None, 7), Some(100..107));
        assert_eq!(a.find_free_run(0..250, Some(b), 1000), Some(200..250));
        assert_eq!(a.find_free_run(301..400, Some(b), 1000), Some(301..310));
        assert_eq!(a.find_free_run(300..400, None, 1), Some(301..302));
        assert_eq!(
            a.find_free_run(301..NR_ENTRIES, None, u32::MAX),
            Some(301..NR_ENTRIES)
        );
        Ok(())
    }

    #[test]
    fn validates() -> Result {
        let mut data = try_box([0; BLOCK_SIZE])?;
        (VALIDATOR.prepare)(&mut data, 7);
        assert_eq!((VALIDATOR.check)(&data, 7), Ok(()));
        assert_eq!(
            (VALIDATOR.check)(&data, 8),
            Err(Error::WrongLocation { block: 8, found: 7 })
        );
        data[100] ^= 1;
        assert!(matches!(
            (VALIDATOR.check)(&data, 7),
            Err(Error::Checksum { block: 7, .. })
        ));
        Ok(())
    }
}
