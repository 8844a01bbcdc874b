// SPDX-License-Identifier: GPL-2.0

//! Arrays of values of a fixed size.
//!
//! An array is a tree of one level from `index / n` to the block that holds the values from there on, `n` being
//! how many values fit a block. All blocks but the last are full. This takes less space than a tree of the
//! values, which would hold a key for each.
//!
//! The length is not stored: whoever keeps the root keeps the length, too.
//!
//! # Format
//!
//! The blocks that hold values, all numbers little-endian:
//!
//! ```text
//! offset  size
//!      0     4  checksum, mixed with 595846735
//!      4     4  number of values that there is space for: as many as fit the block
//!      8     4  number of values
//!     12     4  size of a value in bytes
//!     16     8  the block that it lives in
//!     24        values
//! ```

mod block;
mod cursor;

#[cfg(test)]
mod tests;

use core::{
    cmp,
    marker::PhantomData, //
};

use zerocopy::little_endian::U64;

pub use self::{
    block::VALIDATOR,
    cursor::Cursor, //
};

use self::block::{
    max_entries,
    values,
    ValuesMut, //
};
use crate::{
    block::BlockNr,
    block_manager::{
        BlockManager,
        Guard,
        Reader,
        WriteGuard, //
    },
    btree::{
        Blocks,
        Tree,
        Value,
        ValueType, //
    },
    error::{
        Corruption,
        Error,
        Result, //
    },
    transaction::{
        Shadow,
        Transaction, //
    },
};

/// An array, known by the root of its tree.
///
/// Unlike a tree, an array adds an owner to each value that it stores; the caller keeps its own reference.
pub struct Array<V> {
    blocks: Tree<U64, 1>,
    _values: PhantomData<V>,
}

impl<V: Value> Array<V> {
    /// How many values fit a block.
    const PER_BLOCK: u32 = {
        let n = max_entries(size_of::<V>());
        assert!(n > 0);
        n as u32
    };

    /// The array with that root. Nothing is read.
    pub const fn from_root(root: BlockNr) -> Self {
        Self {
            blocks: Tree::from_root(root),
            _values: PhantomData,
        }
    }

    /// The block of the root.
    pub const fn root(&self) -> BlockNr {
        self.blocks.root()
    }

    /// Makes an array without values.
    pub fn empty<'b, T: Transaction<'b>>(tx: &mut T) -> Result<Self> {
        Ok(Self {
            blocks: Tree::empty(tx)?,
            _values: PhantomData,
        })
    }

    /// Makes an array of `len` values, which `f` gives for each index in turn.
    pub fn new<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        tx: &mut T,
        vt: &mut VT,
        len: u32,
        f: &mut dyn FnMut(u32) -> Result<V>,
    ) -> Result<Self> {
        let mut array = Self::empty(tx)?;
        for index in 0..len.div_ceil(Self::PER_BLOCK) {
            array.add_block(tx, vt, index, len, f)?;
        }
        Ok(array)
    }

    /// The value at `index`, or `None` if that is beyond the end.
    pub fn get<'b, R: Reader<'b>>(&self, reader: R, index: u32) -> Result<Option<V>> {
        let (block, entry) = Self::place(index);
        match self.blocks.lookup(reader, &[u64::from(block)])? {
            Some(block) => {
                let guard = reader.read(block.get(), &VALIDATOR)?;
                Ok(values::<V>(&guard, block.get())?.get(entry).copied())
            }
            None => Ok(None),
        }
    }

    /// Changes the value at `index`. The old value loses its owner and the new one gets one, unless
    /// [`equal`](ValueType::equal) holds.
    ///
    /// Gives [`Error::NoData`] if the index is beyond the end.
    pub fn set<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        index: u32,
        value: V,
    ) -> Result {
        let (block, entry) = Self::place(index);
        let mut guard = self.shadow_block(tx, vt, block)?;
        let location = guard.location();
        let mut values = ValuesMut::<V>::new(&mut guard, location)?;
        let slot = values.get_mut().get_mut(entry).ok_or(Error::NoData)?;
        let old = *slot;
        *slot = value;
        if !vt.equal(&old, &value) {
            vt.inc(tx, &[value])?;
            vt.dec(tx, &[old])?;
        }
        Ok(())
    }

    /// Changes the length from `old_len`, which must be right, to `new_len`.
    ///
    /// New values at the end are `value`, each with an owner; values that are cut off lose theirs.
    pub fn resize<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        old_len: u32,
        new_len: u32,
        value: V,
    ) -> Result {
        if new_len < old_len {
            self.shrink(tx, vt, old_len, new_len)
        } else {
            self.grow(tx, vt, old_len, new_len, value)
        }
    }

    /// Takes one owner from the array. If it was the last, so do all blocks that nothing else shares, and
    /// their values.
    pub fn delete<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        self,
        tx: &mut T,
        vt: &mut VT,
    ) -> Result {
        self.blocks.delete(tx, &mut ArrayBlocks(vt))
    }

    /// Calls `f` for each index and value, in order.
    pub fn walk<'b, R: Reader<'b>>(
        &self,
        reader: R,
        f: &mut dyn FnMut(u32, &V) -> Result,
    ) -> Result {
        self.blocks.walk(reader, &mut |[key], block| {
            let block = block.get();
            let guard = reader.read(block, &VALIDATOR)?;
            let first = u32::try_from(*key)
                .ok()
                .and_then(|key| key.checked_mul(Self::PER_BLOCK));
            let mut index = first;
            for value in values::<V>(&guard, block)? {
                let i = index.ok_or(Error::Corrupt(block, Corruption::ArrayBlock))?;
                f(i, value)?;
                index = i.checked_add(1);
            }
            Ok(())
        })
    }

    /// A cursor at the first value, which reads blocks ahead.
    pub fn cursor<'b, B: BlockManager>(&self, bm: &'b B) -> Result<Cursor<'b, B, V>> {
        Cursor::new(bm, &self.blocks)
    }

    /// The key of the block that a value is in, and where in it.
    fn place(index: u32) -> (u32, usize) {
        (index / Self::PER_BLOCK, (index % Self::PER_BLOCK) as usize)
    }

    /// How many values block `index` of an array of `len` holds.
    fn len_of_block(index: u32, len: u32) -> u32 {
        let before = index.saturating_mul(Self::PER_BLOCK);
        cmp::min(len.saturating_sub(before), Self::PER_BLOCK)
    }

    /// Adds block `index` to an array that will have `len` values.
    fn add_block<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        index: u32,
        len: u32,
        f: &mut dyn FnMut(u32) -> Result<V>,
    ) -> Result {
        let mut guard = tx.new_block(&VALIDATOR)?;
        let location = guard.location();
        let mut values = ValuesMut::<V>::init(&mut guard, location)?;
        for i in 0..Self::len_of_block(index, len) {
            values.push(f(index * Self::PER_BLOCK + i)?)?;
        }
        vt.inc(tx, values.get_mut())?;
        drop(guard);
        let blocks = &mut ArrayBlocks(vt);
        self.blocks
            .insert(tx, blocks, &[u64::from(index)], U64::new(location))?;
        Ok(())
    }

    fn grow<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        old_len: u32,
        new_len: u32,
        value: V,
    ) -> Result {
        let (tail, rest) = Self::place(old_len);
        if rest > 0 {
            let mut guard = self.shadow_block(tx, vt, tail)?;
            let location = guard.location();
            let mut values = ValuesMut::<V>::new(&mut guard, location)?;
            if values.get_mut().len() != rest {
                return Err(Error::Corrupt(location, Corruption::ArrayBlock));
            }
            while values.get_mut().len() < Self::len_of_block(tail, new_len) as usize {
                values.push(value)?;
            }
            vt.inc(tx, values.get_mut().get(rest..).unwrap_or_default())?;
        }
        for index in old_len.div_ceil(Self::PER_BLOCK)..new_len.div_ceil(Self::PER_BLOCK) {
            self.add_block(tx, vt, index, new_len, &mut |_| Ok(value))?;
        }
        Ok(())
    }

    fn shrink<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        old_len: u32,
        new_len: u32,
    ) -> Result {
        let begin = u64::from(new_len.div_ceil(Self::PER_BLOCK));
        let end = u64::from(old_len.div_ceil(Self::PER_BLOCK));
        let blocks = &mut ArrayBlocks(&mut *vt);
        if self.blocks.remove_range(tx, blocks, begin, end)? != end - begin {
            return Err(Error::Corrupt(self.root(), Corruption::ArrayBlock));
        }
        let (tail, rest) = Self::place(new_len);
        if rest > 0 {
            let mut guard = self.shadow_block(tx, vt, tail)?;
            let location = guard.location();
            let mut values = ValuesMut::<V>::new(&mut guard, location)?;
            vt.dec(tx, values.get_mut().get(rest..).unwrap_or_default())?;
            values.truncate(rest);
        }
        Ok(())
    }

    /// Makes the block with that key writable.
    fn shadow_block<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        key: u32,
    ) -> Result<WriteGuard<'b, T::Bm>> {
        self.blocks
            .update(tx, &mut ArrayBlocks(vt), u64::from(key), |tx, vt, block| {
                let Shadow { guard, was_shared } = tx.shadow(block.get(), &VALIDATOR)?;
                let values = values::<V>(&guard, block.get())?;
                if was_shared {
                    vt.0.inc(tx, values)?;
                }
                block.set(guard.location());
                Ok(guard)
            })
    }
}

impl<V> Clone for Array<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for Array<V> {}

impl<V> PartialEq for Array<V> {
    fn eq(&self, other: &Self) -> bool {
        self.blocks == other.blocks
    }
}

impl<V> Eq for Array<V> {}

/// The values of an array's tree: blocks whose last owner takes the values in them with it.
struct ArrayBlocks<'v, VT>(&'v mut VT);

impl<VT: ValueType> ValueType for ArrayBlocks<'_, VT> {
    type Value = U64;

    fn inc<'b, T: Transaction<'b>>(&mut self, tx: &mut T, blocks: &[U64]) -> Result {
        Blocks.inc(tx, blocks)
    }

    fn dec<'b, T: Transaction<'b>>(&mut self, tx: &mut T, blocks: &[U64]) -> Result {
        for block in blocks {
            let block = block.get();
            let end = block.checked_add(1).ok_or(Error::OutOfBounds(block))?;
            match tx.ref_count(block)? {
                0 => return Err(Error::RefCount(block)),
                1 => {
                    let guard = BlockManager::read(tx.bm(), block, &VALIDATOR)?;
                    self.0.dec(tx, values(&guard, block)?)?;
                }
                _ => (),
            }
            tx.dec(block..end)?;
        }
        Ok(())
    }

    fn equal(&self, a: &U64, b: &U64) -> bool {
        a == b
    }
}
