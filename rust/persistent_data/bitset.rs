// SPDX-License-Identifier: GPL-2.0

//! Sets of bits, kept in an array of 64-bit words.
//!
//! Bit `i` is bit `i % 64` of word `i / 64`. What bits beyond the end of the last word are is not said.

mod cursor;

#[cfg(test)]
mod tests;

use zerocopy::little_endian::U64;

pub use self::cursor::Cursor;

use crate::{
    array::Array,
    block::BlockNr,
    block_manager::{
        BlockManager,
        Reader, //
    },
    btree::Plain,
    error::{
        Error,
        Result, //
    },
    transaction::Transaction,
};

const BITS_PER_WORD: u32 = 64;

/// The word that was changed last.
#[derive(Clone, Copy)]
struct Cached {
    index: u32,
    bits: u64,
    is_dirty: bool,
}

/// A set of bits.
///
/// The word that was changed last is kept in memory, which makes changes of neighbours cheap.
/// [`flush`](Self::flush) writes it; without that the change is not part of the transaction.
pub struct Bitset {
    words: Array<U64>,
    len: u32,
    cached: Option<Cached>,
}

impl Bitset {
    /// The set of `len` bits with that root. Nothing is read.
    pub const fn from_root(root: BlockNr, len: u32) -> Self {
        Self {
            words: Array::from_root(root),
            len,
            cached: None,
        }
    }

    /// Makes a set of no bits.
    pub fn empty<'b, T: Transaction<'b>>(tx: &mut T) -> Result<Self> {
        Ok(Self::from_root(Array::<U64>::empty(tx)?.root(), 0))
    }

    /// Makes a set of `len` bits, which `f` gives for each index in turn.
    pub fn new<'b, T: Transaction<'b>>(
        tx: &mut T,
        len: u32,
        f: &mut dyn FnMut(u32) -> Result<bool>,
    ) -> Result<Self> {
        let nr_words = len.div_ceil(BITS_PER_WORD);
        let words = Array::new(tx, &mut Plain::new(), nr_words, &mut |word| {
            let first = word * BITS_PER_WORD;
            let mut bits = 0;
            for bit in 0..(len - first).min(BITS_PER_WORD) {
                bits |= u64::from(f(first + bit)?) << bit;
            }
            Ok(U64::new(bits))
        })?;
        Ok(Self::from_root(words.root(), len))
    }

    /// The block of the root. It covers all changes up to the last [`flush`](Self::flush).
    pub const fn root(&self) -> BlockNr {
        self.words.root()
    }

    /// The number of bits.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are no bits.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets a bit to one. Gives [`Error::NoData`] if it is beyond the end.
    pub fn set<'b, T: Transaction<'b>>(&mut self, tx: &mut T, bit: u32) -> Result {
        self.put(tx, bit, true)
    }

    /// Sets a bit to zero. Gives [`Error::NoData`] if it is beyond the end.
    pub fn clear<'b, T: Transaction<'b>>(&mut self, tx: &mut T, bit: u32) -> Result {
        self.put(tx, bit, false)
    }

    /// What a bit is, after all changes. Gives [`Error::NoData`] if it is beyond the end.
    pub fn test<'b, R: Reader<'b>>(&self, reader: R, bit: u32) -> Result<bool> {
        let (word, mask) = self.place(bit)?;
        let bits = match self.cached {
            Some(cached) if cached.index == word => cached.bits,
            _ => self.read_word(reader, word)?,
        };
        Ok(bits & mask != 0)
    }

    /// Writes the word that was changed last.
    pub fn flush<'b, T: Transaction<'b>>(&mut self, tx: &mut T) -> Result {
        if let Some(cached) = self.cached.as_mut().filter(|cached| cached.is_dirty) {
            let bits = U64::new(cached.bits);
            self.words.set(tx, &mut Plain::new(), cached.index, bits)?;
            cached.is_dirty = false;
        }
        Ok(())
    }

    /// Changes the number of bits; new ones at the end are `value`. Flushes.
    pub fn resize<'b, T: Transaction<'b>>(&mut self, tx: &mut T, len: u32, value: bool) -> Result {
        self.flush(tx)?;
        self.cached = None;
        let old_len = self.len;
        let (old_words, words) = (old_len.div_ceil(BITS_PER_WORD), len.div_ceil(BITS_PER_WORD));
        let fill = if value { u64::MAX } else { 0 };
        self.words
            .resize(tx, &mut Plain::new(), old_words, words, U64::new(fill))?;
        self.len = len;

        // The last old word has bits that nothing was said about until now.
        let used = old_len % BITS_PER_WORD;
        if len > old_len && used > 0 {
            let word = old_len / BITS_PER_WORD;
            let new = u64::MAX << used;
            let bits = self.read_word(tx.bm(), word)?;
            let bits = U64::new((bits & !new) | (fill & new));
            self.words.set(tx, &mut Plain::new(), word, bits)?;
        }
        Ok(())
    }

    /// Takes one owner from the set; if it was the last, the set is gone.
    pub fn delete<'b, T: Transaction<'b>>(self, tx: &mut T) -> Result {
        self.words.delete(tx, &mut Plain::new())
    }

    /// A cursor at the first bit.
    ///
    /// Gives [`Error::Invalid`] if changes were not flushed.
    pub fn cursor<'b, B: BlockManager>(&self, bm: &'b B) -> Result<Cursor<'b, B>> {
        if self.cached.is_some_and(|cached| cached.is_dirty) {
            return Err(Error::Invalid);
        }
        Cursor::new(bm, &self.words, self.len)
    }

    /// The word that a bit is in, and its mask there.
    fn place(&self, bit: u32) -> Result<(u32, u64)> {
        if bit >= self.len {
            return Err(Error::NoData);
        }
        Ok((bit / BITS_PER_WORD, 1 << (bit % BITS_PER_WORD)))
    }

    fn read_word<'b, R: Reader<'b>>(&self, reader: R, word: u32) -> Result<u64> {
        let bits = self.words.get(reader, word)?;
        bits.map(|bits| bits.get()).ok_or(Error::NoData)
    }

    fn put<'b, T: Transaction<'b>>(&mut self, tx: &mut T, bit: u32, value: bool) -> Result {
        let (word, mask) = self.place(bit)?;
        let old = match self.cached {
            Some(cached) if cached.index == word => cached,
            _ => {
                self.flush(tx)?;
                Cached {
                    index: word,
                    bits: self.read_word(tx.bm(), word)?,
                    is_dirty: false,
                }
            }
        };
        let bits = if value {
            old.bits | mask
        } else {
            old.bits & !mask
        };
        self.cached = Some(Cached {
            bits,
            is_dirty: old.is_dirty || bits != old.bits,
            ..old
        });
        Ok(())
    }
}
