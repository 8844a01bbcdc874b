// SPDX-License-Identifier: GPL-2.0

//! Going through a set of bits.

use zerocopy::little_endian::U64;

use super::BITS_PER_WORD;
use crate::{
    array::{
        self,
        Array, //
    },
    block_manager::BlockManager,
    error::Result,
};

/// A place in a set of bits, which moves towards the end.
///
/// After an error it is at the end.
pub struct Cursor<'b, B: BlockManager> {
    words: array::Cursor<'b, B, U64>,
    /// Where in the word.
    bit: u32,
    /// How many bits there are from here on.
    rest: u32,
}

impl<'b, B: BlockManager> Cursor<'b, B> {
    pub(super) fn new(bm: &'b B, words: &Array<U64>, len: u32) -> Result<Self> {
        Ok(Self {
            words: words.cursor(bm)?,
            bit: 0,
            rest: len,
        })
    }

    /// The bit, or `None` at the end.
    pub fn get(&self) -> Option<bool> {
        if self.rest == 0 {
            return None;
        }
        self.words.get().map(|bits| bits.get() >> self.bit & 1 != 0)
    }

    /// Goes on to the next bit; stays at the end.
    #[expect(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result {
        self.skip(1)
    }

    /// Goes on by `n` bits, or to the end.
    pub fn skip(&mut self, n: u32) -> Result {
        if n >= self.rest {
            self.rest = 0;
            return Ok(());
        }
        self.rest -= n;
        let bit = u64::from(self.bit) + u64::from(n);
        let words = (bit / u64::from(BITS_PER_WORD)) as u32;
        self.bit = (bit % u64::from(BITS_PER_WORD)) as u32;
        if words == 0 {
            return Ok(());
        }
        self.words.skip(words)
    }
}
