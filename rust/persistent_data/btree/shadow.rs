// SPDX-License-Identifier: GPL-2.0

//! Making nodes writable on the way down a tree.

use super::{
    node::{
        Node,
        NodeMut, //
    },
    Blocks,
    ValueType,
    VALIDATOR, //
};
use crate::{
    block::BlockNr,
    block_manager::{
        Guard,
        WriteGuard, //
    },
    error::Result,
    transaction::{
        Shadow,
        Transaction, //
    },
};

/// Makes a node writable. If it was shared, all that it refers to gets one more owner.
pub(super) fn shadow<'b, T: Transaction<'b>, VT: ValueType>(
    tx: &mut T,
    vt: &mut VT,
    block: BlockNr,
) -> Result<WriteGuard<'b, T::Bm>> {
    let Shadow { guard, was_shared } = tx.shadow(block, &VALIDATOR)?;
    if guard.location() != block {
        // If there is anything wrong with it, the original is to blame.
        let node = Node::<VT::Value>::new(&guard, block)?;
        if was_shared {
            inc_children(tx, vt, &node)?;
        }
    }
    Ok(guard)
}

/// Makes the child at `index` of a writable node writable.
pub(super) fn shadow_child<'b, T: Transaction<'b>, VT: ValueType>(
    tx: &mut T,
    vt: &mut VT,
    parent: &mut NodeMut<'_>,
    index: usize,
) -> Result<WriteGuard<'b, T::Bm>> {
    let old = parent.child(index)?;
    let child = shadow(tx, vt, old)?;
    if child.location() != old {
        parent.set_child(index, child.location())?;
    }
    Ok(child)
}

/// Gives one more owner to all that a node refers to.
pub(super) fn inc_children<'b, T: Transaction<'b>, VT: ValueType>(
    tx: &mut T,
    vt: &mut VT,
    node: &Node<'_, VT::Value>,
) -> Result {
    match node {
        Node::Internal(entries) => Blocks.inc(tx, entries.values),
        Node::Leaf(entries) => vt.inc(tx, entries.values),
    }
}
