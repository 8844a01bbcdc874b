// SPDX-License-Identifier: GPL-2.0

//! Removing a range of entries.
//!
//! Each step goes down to where the range begins, or what is left of it. The first internal node on the way
//! that has children wholly inside the range drops as many of them as it can afford, without a look at
//! their content where that is shared. Failing that, the leaf drops what is in the range, and is
//! rebalanced if it is too empty then; the range goes on where the leaf ends. Each step leaves a valid tree.

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
        let mut left = begin..end;
        while !left.is_empty() {
            let step = self.remove_some(tx, vt, left.clone())?;
            removed += step.removed;
            left.start = step.next;
        }
        Ok(removed)
    }

    /// Removes some entries, unless there is none where the range begins.
    fn remove_some<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        range: Range<u64>,
    ) -> Result<Step> {
        let mut node = shadow(tx, vt, self.root())?;
        *self = Self::from_root(node.location());
        // All keys in the node are less than this.
        let mut bound = None;
        let mut parent: Option<(WriteGuard<'b, T::Bm>, usize)> = None;

        for _ in 0..MAX_DEPTH {
            let is_root = parent.is_none();
            if let Some(removed) = remove_children(tx, vt, &mut node, &range, bound, is_root)? {
                return Ok(Step {
                    removed,
                    next: range.start,
                });
            }
            let Some(entered) = enter(tx, vt, &mut node, range.start, is_root)? else {
                return Ok(Step {
                    removed: remove_from_leaf(tx, vt, node, parent, &range)?,
                    next: bound.unwrap_or(range.end),
                });
            };
            bound = entered.next_key.or(bound);
            parent = Some((node, entered.index));
            node = entered.child;
        }
        Err(Error::Corrupt(self.root(), Corruption::TooDeep))
    }
}

/// What was done of a removal.
struct Step {
    /// How many entries were removed.
    removed: u64,
    /// Where what is left of the range begins.
    next: u64,
}

/// Removes children that are wholly inside the range from an internal node. Returns how many entries they
/// held; `None` if there is no such child.
fn remove_children<'b, T: Transaction<'b>, VT: ValueType>(
    tx: &mut T,
    vt: &mut VT,
    guard: &mut WriteGuard<'b, T::Bm>,
    range: &Range<u64>,
    bound: Option<u64>,
    is_root: bool,
) -> Result<Option<u64>> {
    let mut node = NodeMut::of(guard)?;
    if node.shape().kind == Kind::Leaf {
        return Ok(None);
    }

    // A child ends where the next one begins.
    let first = node.ceil(range.start);
    if node.key(first).is_none_or(|key| key >= range.end) {
        return Ok(None);
    }
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
        return Ok(None);
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
    Ok(Some(removed))
}

/// Removes what is in the range from a leaf.
fn remove_from_leaf<'b, T: Transaction<'b>, VT: ValueType>(
    tx: &mut T,
    vt: &mut VT,
    mut guard: WriteGuard<'b, T::Bm>,
    parent: Option<(WriteGuard<'b, T::Bm>, usize)>,
    range: &Range<u64>,
) -> Result<u64> {
    let mut leaf = NodeMut::of(&mut guard)?;
    let entries = leaf.ceil(range.start)..leaf.ceil(range.end);
    let nr = entries.len();
    if nr == 0 {
        return Ok(0);
    }
    if let Some(values) = leaf.values()?.get(entries.clone()) {
        vt.dec(tx, values)?;
    }
    leaf.remove(entries)?;

    if leaf.len() >= min_entries(leaf.max()) {
        return Ok(nr as u64);
    }
    if let Some((mut parent, index)) = parent {
        let has_sibling = NodeMut::of(&mut parent)?.len() > 1;
        if has_sibling {
            rebalance_child(tx, vt, &mut parent, index, guard)?;
        }
    }
    Ok(nr as u64)
}
