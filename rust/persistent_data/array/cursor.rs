// SPDX-License-Identifier: GPL-2.0

//! Going through an array.

use zerocopy::little_endian::U64;

use super::{
    block::values,
    VALIDATOR, //
};
use crate::{
    block_manager::{
        BlockManager,
        Guard,
        ReadGuard, //
    },
    btree::{
        self,
        Tree,
        Value, //
    },
    error::Result,
};

/// A place in an array, which moves towards the end.
///
/// After an error it is at the end.
pub struct Cursor<'b, B: BlockManager, V> {
    bm: &'b B,
    blocks: btree::Cursor<'b, B, U64>,
    /// The block that the value is in.
    guard: Option<ReadGuard<'b, B>>,
    index: usize,
    value: Option<V>,
}

impl<'b, B: BlockManager, V: Value> Cursor<'b, B, V> {
    pub(super) fn new(bm: &'b B, blocks: &Tree<U64, 1>) -> Result<Self> {
        let mut cursor = Self {
            bm,
            blocks: blocks.block_cursor(bm)?,
            guard: None,
            index: 0,
            value: None,
        };
        cursor.load_block()?;
        cursor.skip(0)?;
        Ok(cursor)
    }

    /// The value, or `None` at the end.
    pub fn get(&self) -> Option<V> {
        self.value
    }

    /// Goes on to the next value; stays at the end.
    #[expect(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result {
        self.skip(1)
    }

    /// Goes on by `n` values, or to the end.
    pub fn skip(&mut self, n: u32) -> Result {
        let mut n = n as usize;
        self.value = None;
        while let Some(guard) = &self.guard {
            let values = values::<V>(guard, guard.location())?;
            let rest = values.len().saturating_sub(self.index);
            if n < rest {
                self.index += n;
                self.value = values.get(self.index).copied();
                return Ok(());
            }
            n -= rest;
            self.blocks.next()?;
            self.load_block()?;
        }
        Ok(())
    }

    fn load_block(&mut self) -> Result {
        self.guard = None;
        self.index = 0;
        if let Some((_, block)) = self.blocks.get() {
            self.guard = Some(self.bm.read(block.get(), &VALIDATOR)?);
        }
        Ok(())
    }
}
