// SPDX-License-Identifier: GPL-2.0

//! Copy-on-write B+trees from 64-bit keys to values of a fixed size.
//!
//! # Levels
//!
//! A [`Tree<V, L>`](Tree) is `L` levels of trees nested into each other: the values of the upper levels are
//! the roots of the trees one level below, those of the bottom level are `V`. A key is therefore an array
//! of `L` numbers. As the levels look alike, the top of a tree of two levels can also be used as a tree of
//! one level whose values are roots.
//!
//! # Format
//!
//! Each node is one block. All numbers are little-endian.
//!
//! ```text
//! offset  size
//!      0     4  checksum, mixed with 121107
//!      4     4  flags: 1 for an internal node, 2 for a leaf
//!      8     8  the block that the node lives in
//!     16     4  number of entries
//!     20     4  number of entries that there is space for, a multiple of three
//!     24     4  size of a value in bytes; 8 in an internal node
//!     28     4  not used
//!     32        keys, 8 bytes each, strictly ascending; space for the greatest number of entries
//!               values, in the order of the keys
//! ```
//!
//! The values of an internal node are the blocks of its children. A child's key in its parent is at most
//! the lowest key in the child, and greater than the highest key in the child before.
//!
//! All nodes but the root are at least a third full, and no tree is deeper than [`MAX_DEPTH`] nodes. Only the
//! root can be an empty leaf.
//!
//! # Sharing
//!
//! A tree is copied by adding one reference to its root. What the two then share is found out by reference
//! counts on the way of a change: when a node that has other owners is copied, all that it refers to gets
//! one more owner.

mod cursor;
mod delete;
mod diff;
mod finger;
mod inner;
mod insert;
mod lookup;
mod node;
mod rebalance;
mod remove;
mod remove_range;
mod shadow;
mod subtree;
mod update_leaf;
mod value;
mod visit;

#[cfg(any(test, dm_thin_kunit))]
pub(crate) mod small_tests;
#[cfg(test)]
pub(crate) mod tests;

use core::{
    fmt,
    marker::PhantomData, //
};

pub use self::{
    cursor::Cursor,
    node::VALIDATOR,
    value::{
        for_runs,
        Blocks,
        Plain,
        Subtree,
        Value,
        ValueType, //
    },
};

use self::node::NodeMut;
use crate::{
    block::BlockNr,
    block_manager::{
        Guard,
        WriteGuard, //
    },
    error::Result,
    transaction::Transaction,
};

/// The greatest depth of one level of a tree.
///
/// As nodes are at least a third full, valid trees have five levels at most, and one more where the root has a single
/// child. One that is deeper has a loop, or was made to do harm.
pub const MAX_DEPTH: usize = 6;

/// `L` nested levels of B+trees, known by the root of the top one.
///
/// Two values of this type with one root are two views of one tree; changes go through one of them, which
/// then has another root. As nothing is written in place, the other view stays valid only if it has a
/// reference of its own to the old root.
pub struct Tree<V, const L: usize> {
    root: BlockNr,
    _values: PhantomData<V>,
}

impl<V: Value, const L: usize> Tree<V, L> {
    /// The tree whose root is in block `root`. Nothing is read.
    pub const fn from_root(root: BlockNr) -> Self {
        const {
            assert!(L > 0);
            assert!(size_of::<V>() > 0 && node::max_entries(size_of::<V>()) >= 6);
        }
        Self {
            root,
            _values: PhantomData,
        }
    }

    /// The block of the root.
    pub const fn root(&self) -> BlockNr {
        self.root
    }

    /// Makes a tree without entries.
    pub fn empty<'b, T: Transaction<'b>>(tx: &mut T) -> Result<Self> {
        let value_size = if L == 1 { size_of::<V>() } else { 8 };
        let guard = new_leaf(tx, value_size)?;
        Ok(Self::from_root(guard.location()))
    }

    /// Makes `root` the root of a tree one level below the entry of `upper`, or of the whole tree.
    fn link<G: Guard + core::ops::DerefMut>(
        &mut self,
        upper: &mut Option<(G, usize)>,
        root: BlockNr,
    ) -> Result {
        match upper {
            None => {
                self.root = root;
                Ok(())
            }
            Some((leaf, index)) => {
                let block = leaf.location();
                NodeMut::new(leaf, block)?.set_child(*index, root)
            }
        }
    }
}

/// Makes an empty leaf.
fn new_leaf<'b, T: Transaction<'b>>(
    tx: &mut T,
    value_size: usize,
) -> Result<WriteGuard<'b, T::Bm>> {
    let mut guard = tx.new_block(&VALIDATOR)?;
    let block = guard.location();
    NodeMut::init(
        &mut guard,
        block,
        node::Kind::Leaf,
        node::max_entries(value_size),
        value_size,
    )?;
    Ok(guard)
}

impl<V, const L: usize> Clone for Tree<V, L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V, const L: usize> Copy for Tree<V, L> {}

impl<V, const L: usize> PartialEq for Tree<V, L> {
    fn eq(&self, other: &Self) -> bool {
        self.root == other.root
    }
}

impl<V, const L: usize> Eq for Tree<V, L> {}

impl<V, const L: usize> fmt::Debug for Tree<V, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("root", &self.root).finish()
    }
}
