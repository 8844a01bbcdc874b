// SPDX-License-Identifier: GPL-2.0

//! Going through parts of a tree.

use super::{
    node::Node,
    subtree::Subtree,
    Tree,
    Value,
    VALIDATOR, //
};
use crate::{
    block::BlockNr,
    block_manager::Reader,
    error::Result,
    platform::{
        TryVec,
        Vec, //
    },
};

impl<V: Value> Tree<V, 1> {
    /// Asks `choose` about each node, beginning with the root, and goes into those that it wants; it is told the node's
    /// block, and how far away the leaves are: 0 for a leaf. Calls `f` with each entry of the leaves that it gets to, and
    /// the leaf's block. The keys ascend.
    ///
    /// So whoever goes through several trees can leave out what they share, and whoever cares for nodes only need not
    /// read the leaves.
    pub fn visit<'b, R: Reader<'b>>(
        &self,
        reader: R,
        choose: &mut dyn FnMut(BlockNr, usize) -> bool,
        f: &mut dyn FnMut(BlockNr, u64, V) -> Result,
    ) -> Result {
        visit(
            Subtree::whole::<V, R>(reader, self.root())?,
            reader,
            choose,
            f,
        )
    }
}

/// As [`Tree::visit`], for a part of a tree.
pub(super) fn visit<'b, V: Value, R: Reader<'b>>(
    root: Subtree,
    reader: R,
    choose: &mut dyn FnMut(BlockNr, usize) -> bool,
    f: &mut dyn FnMut(BlockNr, u64, V) -> Result,
) -> Result {
    let mut next = choose(root.block, root.height).then_some(root);
    // For each height, the nodes to go into, the last one first.
    let mut left: Vec<Vec<Subtree>> = Vec::new();
    loop {
        let Some(subtree) = next.take() else {
            match left.last_mut().map(|nodes| nodes.pop()) {
                Some(Some(node)) => next = Some(node),
                Some(None) => drop(left.pop()),
                None => return Ok(()),
            }
            continue;
        };
        let guard = reader.read(subtree.block, &VALIDATOR)?;
        match subtree.node::<V>(&guard)? {
            Node::Leaf(entries) => {
                for (key, value) in entries.keys.iter().zip(entries.values) {
                    f(subtree.block, key.get(), *value)?;
                }
            }
            Node::Internal(entries) => {
                let mut nodes = Vec::try_with_room(entries.keys.len())?;
                for index in 0..entries.keys.len() {
                    if let Some(child) = subtree.child(&entries, index) {
                        if choose(child.block, child.height) {
                            reader.prefetch(child.block);
                            nodes.try_push(child)?;
                        }
                    }
                }
                nodes.reverse();
                left.try_push(nodes)?;
            }
        }
    }
}
