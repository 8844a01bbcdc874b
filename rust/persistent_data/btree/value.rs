// SPDX-License-Identifier: GPL-2.0

//! What trees hold, and what their values own.

use core::marker::PhantomData;

use zerocopy::{
    little_endian::U64,
    FromBytes,
    Immutable,
    IntoBytes,
    Unaligned, //
};

use super::Tree;
use crate::{
    block::{
        BlockNr,
        BlockRange, //
    },
    error::{
        Error,
        Result, //
    },
    transaction::Transaction,
};

/// Plain data as it lies in a leaf or an array block: little-endian fields, no padding, any bytes valid.
pub trait Value: Copy + FromBytes + IntoBytes + Immutable + Unaligned + 'static {}

impl<T: Copy + FromBytes + IntoBytes + Immutable + Unaligned + 'static> Value for T {}

/// What the values of a tree or array own.
///
/// A structure that holds a value is one owner of whatever the value refers to. The caller of an insertion
/// hands its own reference over to the tree.
pub trait ValueType {
    /// The values.
    type Value: Value;

    /// Adds one owner to each of `values`: the block that they are in was copied.
    fn inc<'b, T: Transaction<'b>>(&mut self, tx: &mut T, values: &[Self::Value]) -> Result;

    /// Takes one owner from each of `values`: they were removed or overwritten.
    fn dec<'b, T: Transaction<'b>>(&mut self, tx: &mut T, values: &[Self::Value]) -> Result;

    /// Whether `a` overwritten by `b` keeps its reference, so that [`dec`](Self::dec) must not see it.
    fn equal(&self, a: &Self::Value, b: &Self::Value) -> bool;
}

/// Values that own nothing.
pub struct Plain<V>(PhantomData<V>);

impl<V> Plain<V> {
    /// There is nothing to it.
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<V> Default for Plain<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: Value> ValueType for Plain<V> {
    type Value = V;

    fn inc<'b, T: Transaction<'b>>(&mut self, _: &mut T, _: &[V]) -> Result {
        Ok(())
    }

    fn dec<'b, T: Transaction<'b>>(&mut self, _: &mut T, _: &[V]) -> Result {
        Ok(())
    }

    fn equal(&self, a: &V, b: &V) -> bool {
        a.as_bytes() == b.as_bytes()
    }
}

/// Numbers of metadata blocks, each of which is one reference to its block and to nothing else.
pub struct Blocks;

impl ValueType for Blocks {
    type Value = U64;

    fn inc<'b, T: Transaction<'b>>(&mut self, tx: &mut T, values: &[U64]) -> Result {
        for_runs(values.iter().map(|v| v.get()), |run| tx.inc(run))
    }

    fn dec<'b, T: Transaction<'b>>(&mut self, tx: &mut T, values: &[U64]) -> Result {
        for_runs(values.iter().map(|v| v.get()), |run| tx.dec(run))
    }

    fn equal(&self, a: &U64, b: &U64) -> bool {
        a == b
    }
}

/// Roots of trees of `L` levels, whose own values are of the type within.
///
/// The last owner of a root takes the whole tree with it.
pub struct Subtree<'v, VT, const L: usize>(pub &'v mut VT);

impl<VT: ValueType, const L: usize> ValueType for Subtree<'_, VT, L> {
    type Value = U64;

    fn inc<'b, T: Transaction<'b>>(&mut self, tx: &mut T, values: &[U64]) -> Result {
        Blocks.inc(tx, values)
    }

    fn dec<'b, T: Transaction<'b>>(&mut self, tx: &mut T, values: &[U64]) -> Result {
        for root in values {
            Tree::<VT::Value, L>::from_root(root.get()).delete(tx, self.0)?;
        }
        Ok(())
    }

    fn equal(&self, a: &U64, b: &U64) -> bool {
        a == b
    }
}

/// Calls `f` for each run of ascending, consecutive numbers in `blocks`.
///
/// Gives [`Error::OutOfBounds`] for a number that has no successor.
pub fn for_runs(
    blocks: impl IntoIterator<Item = BlockNr>,
    mut f: impl FnMut(BlockRange) -> Result,
) -> Result {
    let after = |block: BlockNr| block.checked_add(1).ok_or(Error::OutOfBounds(block));
    let mut blocks = blocks.into_iter();
    let Some(first) = blocks.next() else {
        return Ok(());
    };
    let mut run = first..after(first)?;
    for block in blocks {
        if block != run.end {
            f(run)?;
            run = block..block;
        }
        run.end = after(block)?;
    }
    f(run)
}
