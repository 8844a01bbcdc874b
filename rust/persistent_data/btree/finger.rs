// SPDX-License-Identifier: GPL-2.0

//! A place in a tree that is being changed.
//!
//! A [`Finger`] holds all nodes on the way from the root to a leaf, writable. So to go on to a key that is near takes
//! no more than the nodes that are not on the way yet, and many entries are added at the cost of a few.

use super::{
    insert::{
        rebalance_or_split,
        split_beneath, //
    },
    node::{
        Kind,
        NodeMut, //
    },
    shadow::{
        shadow,
        shadow_child, //
    },
    ValueType,
    MAX_DEPTH, //
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

/// How many steps a way may take: to the root and back, with a split of each node.
const MAX_STEPS: usize = 5 * MAX_DEPTH;

/// A node on the way.
struct Level<'b, B: BlockManager + 'b> {
    node: WriteGuard<'b, B>,
    /// Which child the way goes on to.
    index: usize,
    /// All keys in the node are less than this.
    bound: Option<u64>,
}

/// The way to a leaf of one level of a tree.
pub(super) struct Finger<'b, B: BlockManager> {
    root: BlockNr,
    levels: [Option<Level<'b, B>>; MAX_DEPTH],
    /// How many there are.
    len: usize,
}

impl<'b, B: BlockManager + 'b> Finger<'b, B> {
    /// For the tree with this root; nothing is held yet.
    pub(super) fn new(root: BlockNr) -> Self {
        Self {
            root,
            levels: [const { None }; MAX_DEPTH],
            len: 0,
        }
    }

    /// The root, which [`seek`](Self::seek) changes.
    pub(super) fn root(&self) -> BlockNr {
        self.root
    }

    /// Goes to the leaf of `key`, and makes space for it where it is missing. Once there, keys can only ascend.
    ///
    /// All keys that belong to the leaf are less than what is returned, if there is an end.
    pub(super) fn seek<T: Transaction<'b, Bm = B>, VT: ValueType>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        key: u64,
    ) -> Result<Option<u64>> {
        while matches!(self.last(), Some(Level { bound: Some(bound), .. }) if key >= *bound) {
            self.pop();
        }
        if self.len == 0 {
            let node = shadow(tx, vt, self.root)?;
            self.root = node.location();
            self.push(node, None)?;
        }
        for _ in 0..MAX_STEPS {
            let Some(level) = self.last() else {
                break;
            };
            let mut view = NodeMut::of(&mut level.node)?;
            let is_leaf = view.shape().kind == Kind::Leaf;
            // A leaf needs no space for a value that is overwritten.
            if view.len() >= view.max() && !(is_leaf && view.find(key).is_ok()) {
                self.make_space(tx, vt, key)?;
                continue;
            }
            if is_leaf {
                return Ok(level.bound);
            }
            let index = match view.floor(key) {
                Some(index) => index,
                None => {
                    // The first child will hold a key lower than all.
                    view.set_key(0, key)?;
                    0
                }
            };
            let child = shadow_child(tx, vt, &mut view, index)?;
            let bound = view.key(index + 1).or(level.bound);
            level.index = index;
            self.push(child, bound)?;
        }
        Err(Error::Corrupt(self.root, Corruption::TooDeep))
    }

    /// The leaf that [`seek`](Self::seek) has led to.
    pub(super) fn leaf(&mut self) -> Result<NodeMut<'_>> {
        match self.last() {
            Some(level) => NodeMut::of(&mut level.node),
            None => Err(Error::Invalid),
        }
    }

    /// As [`leaf`](Self::leaf); lets all other nodes go.
    pub(super) fn into_leaf(mut self) -> Result<WriteGuard<'b, B>> {
        self.pop().map(|level| level.node).ok_or(Error::Invalid)
    }

    /// Makes space in the innermost node, which is full, or leaves it because its parent must be split before.
    fn make_space<T: Transaction<'b, Bm = B>, VT: ValueType>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        key: u64,
    ) -> Result {
        let Some(mut full) = self.pop() else {
            return Err(Error::Invalid);
        };
        let Some(parent) = self.last() else {
            split_beneath(tx, &mut full.node)?;
            return self.push(full.node, full.bound);
        };
        let view = NodeMut::of(&mut parent.node)?;
        if view.len() >= view.max() {
            return Ok(());
        }
        let node = rebalance_or_split(tx, vt, &mut parent.node, parent.index, full.node, key)?;
        let block = parent.node.location();
        let view = NodeMut::of(&mut parent.node)?;
        parent.index = view
            .floor(key)
            .ok_or(Error::Corrupt(block, Corruption::KeyOrder))?;
        let bound = view.key(parent.index + 1).or(parent.bound);
        self.push(node, bound)
    }

    fn last(&mut self) -> Option<&mut Level<'b, B>> {
        let last = self.len.checked_sub(1)?;
        self.levels.get_mut(last)?.as_mut()
    }

    fn pop(&mut self) -> Option<Level<'b, B>> {
        self.len = self.len.checked_sub(1)?;
        self.levels.get_mut(self.len)?.take()
    }

    fn push(&mut self, node: WriteGuard<'b, B>, bound: Option<u64>) -> Result {
        let too_deep = Error::Corrupt(self.root, Corruption::TooDeep);
        *self.levels.get_mut(self.len).ok_or(too_deep)? = Some(Level {
            node,
            index: 0,
            bound,
        });
        self.len += 1;
        Ok(())
    }
}
