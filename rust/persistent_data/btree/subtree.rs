// SPDX-License-Identifier: GPL-2.0

//! A part of a tree, as its parent knows it.

use zerocopy::little_endian::U64;

use super::{
    node::{
        Entries,
        Node, //
    },
    Value,
    MAX_DEPTH,
    VALIDATOR, //
};
use crate::{
    block::{
        BlockData,
        BlockNr, //
    },
    block_manager::Reader,
    error::{
        Corruption,
        Error,
        Result, //
    },
};

/// The root of a part of a tree, and what must be true of it.
///
/// A walk that looks into each node by [`node`](Self::node) comes to no node twice on one level, and to no key after a
/// greater one, whatever the device holds.
#[derive(Clone, Copy)]
pub(super) struct Subtree {
    pub(super) block: BlockNr,
    /// How far away the leaves are; 0 for a leaf.
    pub(super) height: usize,
    /// No key in it is less.
    pub(super) begin: u64,
    /// All keys in it are less; `None` if nothing comes after it.
    pub(super) end: Option<u64>,
    is_root: bool,
}

impl Subtree {
    /// A whole tree. The way down to its lowest key is read, to find out the height.
    pub(super) fn whole<'b, V: Value, R: Reader<'b>>(reader: R, root: BlockNr) -> Result<Self> {
        let mut block = root;
        for height in 0..MAX_DEPTH {
            let guard = reader.read(block, &VALIDATOR)?;
            match Node::<V>::new(&guard, block)? {
                Node::Leaf(_) => return Ok(Self::unread(root, height)),
                Node::Internal(entries) => match entries.values.first() {
                    Some(child) => block = child.get(),
                    None => return Err(Error::Corrupt(block, Corruption::EmptyNode)),
                },
            }
        }
        Err(Error::Corrupt(root, Corruption::TooDeep))
    }

    /// A whole tree that has this height.
    pub(super) fn unread(root: BlockNr, height: usize) -> Self {
        Self {
            block: root,
            height,
            begin: 0,
            end: None,
            is_root: true,
        }
    }

    /// The node in its block, which holds `data`.
    pub(super) fn node<'a, V: Value>(&self, data: &'a BlockData) -> Result<Node<'a, V>> {
        let corrupt = |what| Err(Error::Corrupt(self.block, what));
        let node = Node::new(data, self.block)?;
        let (keys, is_leaf): (&[U64], bool) = match &node {
            Node::Internal(entries) => (entries.keys, false),
            Node::Leaf(entries) => (entries.keys, true),
        };
        if is_leaf != (self.height == 0) {
            return corrupt(Corruption::Unbalanced);
        }
        match (keys.first(), keys.last()) {
            (Some(first), Some(last)) => {
                let is_beyond = self.end.is_some_and(|end| last.get() >= end);
                if first.get() < self.begin || is_beyond {
                    return corrupt(Corruption::KeyOrder);
                }
            }
            _ if self.is_root => {}
            _ => return corrupt(Corruption::EmptyNode),
        }
        Ok(node)
    }

    /// The child at `index` among the entries of its node, which is an internal one.
    pub(super) fn child(&self, entries: &Entries<'_, U64>, index: usize) -> Option<Self> {
        let (begin, block) = entries.get(index)?;
        let end = match entries.keys.get(index.checked_add(1)?) {
            Some(end) => Some(end.get()),
            None => self.end,
        };
        Some(Self {
            block: block.get(),
            height: self.height.checked_sub(1)?,
            begin,
            end,
            is_root: false,
        })
    }
}
