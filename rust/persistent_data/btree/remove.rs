// SPDX-License-Identifier: GPL-2.0

//! Removing one entry.
//!
//! A node that could become less than a third full by a removal further down is rebalanced with its
//! neighbours on the way down, so that nothing needs to be done on the way up.

use super::{
    inner::find_writable,
    node::{
        Kind,
        Node,
        NodeMut,
        Shape, //
    },
    rebalance::{
        rebalance_child,
        safe_entries, //
    },
    shadow::{
        inc_children,
        shadow,
        shadow_child, //
    },
    Blocks,
    Tree,
    Value,
    ValueType,
    MAX_DEPTH,
    VALIDATOR, //
};
use crate::{
    block::BlockNr,
    block_manager::{
        BlockManager,
        Guard,
        WriteGuard, //
    },
    error::{
        Corruption,
        Error,
        Result, //
    },
    transaction::Transaction,
};

impl<V: Value, const L: usize> Tree<V, L> {
    /// Removes an entry; its value loses its owner. A bottom tree that gets empty stays.
    ///
    /// Gives [`Error::NoData`] if there is no such entry. The tree then has the content it had before, though
    /// some of its nodes may have been copied or rebalanced.
    pub fn remove<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        keys: &[u64; L],
    ) -> Result {
        let Some((&last, upper_keys)) = keys.split_last() else {
            return Err(Error::Invalid);
        };
        let mut root = self.root();
        let mut upper = None;
        for &key in upper_keys {
            let node = shadow(tx, &mut Blocks, root)?;
            self.link(&mut upper, node.location())?;
            let (mut leaf, index) = find_writable(tx, node, key)?;
            root = NodeMut::of(&mut leaf)?.child(index)?;
            upper = Some((leaf, index));
        }

        let mut node = shadow(tx, vt, root)?;
        self.link(&mut upper, node.location())?;
        let mut is_root = true;
        for _ in 0..MAX_DEPTH {
            match enter(tx, vt, &mut node, last, is_root)? {
                Some(entered) => node = entered.child,
                None => return remove_from_leaf(tx, vt, &mut node, last),
            }
            is_root = false;
        }
        Err(Error::Corrupt(self.root(), Corruption::TooDeep))
    }
}

fn remove_from_leaf<'b, T: Transaction<'b>, VT: ValueType>(
    tx: &mut T,
    vt: &mut VT,
    leaf: &mut WriteGuard<'b, T::Bm>,
    key: u64,
) -> Result {
    let mut leaf = NodeMut::of(leaf)?;
    let index = leaf.ceil(key);
    if leaf.keys().get(index).map(|k| k.get()) != Some(key) {
        return Err(Error::NoData);
    }
    let value = leaf.values::<VT::Value>()?.get(index).copied();
    leaf.remove(index..index + 1)?;
    match value {
        Some(value) => vt.dec(tx, &[value]),
        None => Ok(()),
    }
}

/// The child that a way goes on to.
pub(super) struct Entered<'b, B: BlockManager + 'b> {
    pub(super) child: WriteGuard<'b, B>,
    /// Which of its parent's children it is.
    pub(super) index: usize,
    /// The parent's key of the next one.
    pub(super) next_key: Option<u64>,
}

/// Makes the child of an internal node that `key` belongs to writable, and ready to lose entries.
///
/// Returns `None` for a leaf. A root with one child takes its place on the way, and may become a
/// leaf then. A `key` that is lower than all keys leads to the first child.
pub(super) fn enter<'b, T: Transaction<'b>, VT: ValueType>(
    tx: &mut T,
    vt: &mut VT,
    node: &mut WriteGuard<'b, T::Bm>,
    key: u64,
    is_root: bool,
) -> Result<Option<Entered<'b, T::Bm>>> {
    let block = node.location();
    let mut is_rebalanced = false;
    for _ in 0..MAX_DEPTH {
        let mut view = NodeMut::new(node, block)?;
        if view.shape().kind == Kind::Leaf {
            return Ok(None);
        }
        let nr_children = view.len();
        if is_root && nr_children == 1 {
            let child = view.child(0)?;
            collapse(tx, vt, node, child)?;
            is_rebalanced = false;
            continue;
        }
        let index = view.floor(key).unwrap_or(0);
        let child = shadow_child(tx, vt, &mut view, index)?;
        let shape = Shape::of(&child, child.location())?;
        let is_safe = shape.len >= safe_entries(shape.max);
        if is_safe || is_rebalanced || nr_children == 1 {
            return Ok(Some(Entered {
                index,
                next_key: view.key(index + 1),
                child,
            }));
        }
        rebalance_child(tx, vt, node, index, child)?;
        is_rebalanced = true;
    }
    Err(Error::Corrupt(block, Corruption::TooDeep))
}

/// Puts the only child of a root in the root's place.
fn collapse<'b, T: Transaction<'b>, VT: ValueType>(
    tx: &mut T,
    vt: &mut VT,
    root: &mut WriteGuard<'b, T::Bm>,
    child: BlockNr,
) -> Result {
    let is_shared = tx.ref_count(child)? > 1;
    let guard = tx.bm().read(child, &VALIDATOR)?;
    let node = Node::<VT::Value>::new(&guard, child)?;
    if is_shared {
        inc_children(tx, vt, &node)?;
    }
    root.copy_from_slice(guard.as_slice());
    drop(guard);
    tx.dec(child..child + 1)
}
