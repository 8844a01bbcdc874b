// SPDX-License-Identifier: GPL-2.0

//! Removing a range of entries.
//!
//! Each step goes down to the lowest key that is left in the range. The first internal node on the way
//! that has children wholly inside the range drops as many of them as it can afford, without a look at
//! their content where that is shared. Failing that, the leaf drops what is in the range, and is
//! rebalanced if it is too empty then. Each step leaves a valid tree.

use core::ops::Range;

use super::{
    delete::delete_counted,
    node::{
        min_entries,
        Kind,
        NodeMut, //
    },
    rebalance::rebalance_child,
    remove::enter,
    shadow::shadow,
    Tree,
    Value,
    ValueType,
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
    platform::{
        TryVec,
        Vec, //
    },
    transaction::Transaction,
};

impl<V: Value> Tree<V, 1> {
    /// Removes all entries with `begin <= key < end`; their values lose their owner. Returns how many
    /// there were.
    pub fn remove_range<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        begin: u64,
        end: u64,
    ) -> Result<u64> {
        let mut removed = 0;
        if begin >= end {
            return Ok(removed);
        }
        while let Some((key, _)) = self.lookup_next(tx.bm(), &[begin])? {
            if key >= end {
                break;
            }
            removed += self.remove_some(tx, vt, key, begin..end)?;
        }
        Ok(removed)
    }

    /// Removes at least the entry of `key`, the lowest in the range.
    fn remove_some<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        key: u64,
        range: Range<u64>,
    ) -> Result<u64> {
        let mut node = shadow(tx, vt, self.root())?;
        *self = Self::from_root(node.location());
        // All keys in the node are less than this.
        let mut bound = None;
        let mut parent: Option<(WriteGuard<'b, T::Bm>, usize)> = None;

        for _ in 0..MAX_DEPTH {
            let is_root = parent.is_none();
            let removed = remove_children(tx, vt, &mut node, &range, bound, is_root)?;
            if removed > 0 {
                return Ok(removed);
            }
            let Some((index, child)) = enter(tx, vt, &mut node, key, is_root)? else {
                return remove_from_leaf(tx, vt, node, parent, &range);
            };
            let block = node.location();
            let next = NodeMut::new(&mut node, block)?
                .keys()
                .get(index + 1)
                .map(|k| k.get());
            bound = next.or(bound);
            parent = Some((node, index));
            node = child;
        }
        Err(Error::Corrupt(self.root(), Corruption::TooDeep))
    }
}

/// Removes children that are wholly inside the range from an internal node. Returns how many entries they
/// held.
fn remove_children<'b, T: Transaction<'b>, VT: ValueType>(
    tx: &mut T,
    vt: &mut VT,
    guard: &mut WriteGuard<'b, T::Bm>,
    range: &Range<u64>,
    bound: Option<u64>,
    is_root: bool,
) -> Result<u64> {
    let block = guard.location();
    let mut node = NodeMut::new(guard, block)?;
    if node.shape().kind == Kind::Leaf {
        return Ok(0);
    }

    // A child ends where the next one begins.
    let first = node.ceil(range.start);
    let begin_within = node.keys().partition_point(|k| k.get() <= range.end);
    let last_within = bound.is_some_and(|bound| bound <= range.end);
    let end = match begin_within == node.len() && last_within {
        true => begin_within,
        false => begin_within.saturating_sub(1),
    };
    let least = if is_root { 1 } else { min_entries(node.max()) };
    let spare = node.len().saturating_sub(least);
    let nr = core::cmp::min(end.saturating_sub(first), spare);
    if nr == 0 {
        return Ok(0);
    }

    let mut children = Vec::new();
    for index in first..first + nr {
        children.try_push(node.child(index)?)?;
    }
    node.remove(first..first + nr)?;
    let mut removed = 0;
    for &child in children.iter() {
        removed += delete_counted(tx, vt, child)?;
    }
    Ok(removed)
}

/// Removes what is in the range from a leaf.
fn remove_from_leaf<'b, T: Transaction<'b>, VT: ValueType>(
    tx: &mut T,
    vt: &mut VT,
    mut guard: WriteGuard<'b, T::Bm>,
    parent: Option<(WriteGuard<'b, T::Bm>, usize)>,
    range: &Range<u64>,
) -> Result<u64> {
    let block = guard.location();
    let mut leaf = NodeMut::new(&mut guard, block)?;
    let entries = leaf.ceil(range.start)..leaf.ceil(range.end);
    let nr = entries.len();
    if nr == 0 {
        // The way down did not lead to the key that is known to be there.
        return Err(Error::Corrupt(block, Corruption::KeyOrder));
    }
    if let Some(values) = leaf.values()?.get(entries.clone()) {
        vt.dec(tx, values)?;
    }
    leaf.remove(entries)?;

    let is_poor = leaf.len() < min_entries(leaf.max());
    if let Some((mut parent, index)) = parent {
        let parent_block = parent.location();
        let has_sibling = NodeMut::new(&mut parent, parent_block)?.len() > 1;
        if is_poor && has_sibling {
            rebalance_child(tx, vt, &mut parent, index, guard)?;
        }
    }
    Ok(nr as u64)
}
