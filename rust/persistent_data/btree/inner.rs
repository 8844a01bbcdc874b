// SPDX-License-Identifier: GPL-2.0

//! The trees of a lower level, on their way to being changed.

use super::{
    node::{
        Kind,
        NodeMut, //
    },
    shadow::{
        shadow,
        shadow_child, //
    },
    Blocks,
    Tree,
    Value,
    MAX_DEPTH, //
};
use crate::{
    block_manager::{
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

impl<V: Value> Tree<V, 2> {
    /// Changes, by `f`, the tree that `key` names in the upper level.
    ///
    /// Gives [`Error::NoData`] if there is none.
    pub fn change_inner<'b, T: Transaction<'b>, X>(
        &mut self,
        tx: &mut T,
        key: u64,
        f: impl FnOnce(&mut T, &mut Tree<V, 1>) -> Result<X>,
    ) -> Result<X> {
        let node = shadow(tx, &mut Blocks, self.root())?;
        *self = Self::from_root(node.location());
        let (mut leaf, index) = find_writable(tx, node, key)?;
        let mut leaf = NodeMut::of(&mut leaf)?;
        let mut inner = Tree::from_root(leaf.child(index)?);
        let x = f(tx, &mut inner)?;
        // What the old root was is the new one now.
        leaf.set_child(index, inner.root())?;
        Ok(x)
    }
}

/// Finds `key` in an upper level, whose `node` is the root.
pub(super) fn find_writable<'b, T: Transaction<'b>>(
    tx: &mut T,
    mut node: WriteGuard<'b, T::Bm>,
    key: u64,
) -> Result<(WriteGuard<'b, T::Bm>, usize)> {
    let root = node.location();
    for _ in 0..MAX_DEPTH {
        let mut view = NodeMut::of(&mut node)?;
        let index = view.floor(key).ok_or(Error::NoData)?;
        if view.shape().kind == Kind::Leaf {
            return match view.keys().get(index) {
                Some(found) if found.get() == key => Ok((node, index)),
                _ => Err(Error::NoData),
            };
        }
        node = shadow_child(tx, &mut Blocks, &mut view, index)?;
    }
    Err(Error::Corrupt(root, Corruption::TooDeep))
}
