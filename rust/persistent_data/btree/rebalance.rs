// SPDX-License-Identifier: GPL-2.0

//! Moving entries between siblings.

use core::cmp;

use super::{
    node::{
        min_entries,
        NodeMut, //
    },
    shadow::shadow_child,
    ValueType, //
};
use crate::{
    block_manager::{
        Guard,
        WriteGuard, //
    },
    error::Result,
    transaction::Transaction,
};

/// How many entries a removal may take from a node at most, other than from a leaf.
///
/// Three children become one in the worst case.
const MOST_REMOVED: usize = 2;

/// How many entries a node needs so that a removal further down leaves it at least a third full.
pub(super) fn safe_entries(max: usize) -> usize {
    min_entries(max) + MOST_REMOVED
}

/// Gives two siblings about the same number of entries.
pub(super) fn balance2(left: &mut NodeMut<'_>, right: &mut NodeMut<'_>) -> Result {
    let target = (left.len() + right.len()) / 2;
    settle_left(left, right, target)
}

/// Gives three siblings about the same number of entries.
pub(super) fn balance3(
    left: &mut NodeMut<'_>,
    center: &mut NodeMut<'_>,
    right: &mut NodeMut<'_>,
) -> Result {
    let total = left.len() + center.len() + right.len();
    let target_left = total / 3;
    let target_right = (total - target_left) / 2;

    // The emptier end comes first, so that the center never gets more than it can hold. If the center has
    // too few to fill that end, it is emptied, and the two ends are neighbours.
    if left.len() < right.len() {
        if left.len() + center.len() < target_left {
            NodeMut::shift_left(left, center, center.len())?;
            settle_left(left, right, target_left)?;
        } else {
            settle_left(left, center, target_left)?;
        }
        settle_right(center, right, target_right)
    } else {
        if right.len() + center.len() < target_right {
            NodeMut::shift_right(center, right, center.len())?;
            settle_right(left, right, target_right)?;
        } else {
            settle_right(center, right, target_right)?;
        }
        settle_left(left, center, target_left)
    }
}

/// Gives `left` exactly `target` entries, at the cost or to the benefit of `right`.
fn settle_left(left: &mut NodeMut<'_>, right: &mut NodeMut<'_>, target: usize) -> Result {
    match target.checked_sub(left.len()) {
        Some(n) => NodeMut::shift_left(left, right, n),
        None => NodeMut::shift_right(left, right, left.len() - target),
    }
}

/// Gives `right` exactly `target` entries, at the cost or to the benefit of `left`.
fn settle_right(left: &mut NodeMut<'_>, right: &mut NodeMut<'_>, target: usize) -> Result {
    match target.checked_sub(right.len()) {
        Some(n) => NodeMut::shift_right(left, right, n),
        None => NodeMut::shift_left(left, right, right.len() - target),
    }
}

/// Gives the child at `index` of `parent` company: it is evened out with its neighbours, or there will be
/// one or two children less.
///
/// `child` is that child. The parent must have another one.
pub(super) fn rebalance_child<'b, T: Transaction<'b>, VT: ValueType>(
    tx: &mut T,
    vt: &mut VT,
    parent: &mut WriteGuard<'b, T::Bm>,
    index: usize,
    mut child: WriteGuard<'b, T::Bm>,
) -> Result {
    let mut view = NodeMut::of(parent)?;
    let last = view.len().saturating_sub(1);
    if index == 0 {
        let mut right = shadow_child(tx, vt, &mut view, 1)?;
        join2(tx, parent, 0, &mut child, &mut right)
    } else if index >= last {
        let mut left = shadow_child(tx, vt, &mut view, index - 1)?;
        join2(tx, parent, index - 1, &mut left, &mut child)
    } else {
        let mut left = shadow_child(tx, vt, &mut view, index - 1)?;
        let mut right = shadow_child(tx, vt, &mut view, index + 1)?;
        join3(tx, parent, index, &mut left, &mut child, &mut right)
    }
}

/// Merges or evens out the children at `index` and `index + 1`.
fn join2<'b, T: Transaction<'b>>(
    tx: &mut T,
    parent: &mut WriteGuard<'b, T::Bm>,
    index: usize,
    left_guard: &mut WriteGuard<'b, T::Bm>,
    right_guard: &mut WriteGuard<'b, T::Bm>,
) -> Result {
    let (parent_block, left_block, right_block) = (
        parent.location(),
        left_guard.location(),
        right_guard.location(),
    );
    let mut parent = NodeMut::new(parent, parent_block)?;
    let mut left = NodeMut::new(left_guard, left_block)?;
    let mut right = NodeMut::new(right_guard, right_block)?;

    // Either one must be safe afterwards if they stay two.
    let total = left.len() + right.len();
    let enough = cmp::min(2 * safe_entries(left.max()), left.max() + 1);
    if total < enough {
        let n = right.len();
        NodeMut::shift_left(&mut left, &mut right, n)?;
        parent.remove(index + 1..index + 2)?;
        // What it referred to is the left one's now.
        return tx.dec(right_block..right_block + 1);
    }

    balance2(&mut left, &mut right)?;
    set_first_key(&mut parent, index + 1, &right)
}

/// Evens out the children around `index`, or spreads the one at `index` over the other two.
fn join3<'b, T: Transaction<'b>>(
    tx: &mut T,
    parent_guard: &mut WriteGuard<'b, T::Bm>,
    index: usize,
    left_guard: &mut WriteGuard<'b, T::Bm>,
    center_guard: &mut WriteGuard<'b, T::Bm>,
    right_guard: &mut WriteGuard<'b, T::Bm>,
) -> Result {
    let (parent_block, left_block, center_block, right_block) = (
        parent_guard.location(),
        left_guard.location(),
        center_guard.location(),
        right_guard.location(),
    );
    let mut parent = NodeMut::new(parent_guard, parent_block)?;
    let mut left = NodeMut::new(left_guard, left_block)?;
    let mut center = NodeMut::new(center_guard, center_block)?;
    let mut right = NodeMut::new(right_guard, right_block)?;
    left.check_sibling(&center)?;
    left.check_sibling(&right)?;

    let total = left.len() + center.len() + right.len();
    if total > 4 * min_entries(left.max()) {
        balance3(&mut left, &mut center, &mut right)?;
        set_first_key(&mut parent, index, &center)?;
        return set_first_key(&mut parent, index + 1, &right);
    }

    let n = cmp::min(left.max() - left.len(), center.len());
    NodeMut::shift_left(&mut left, &mut center, n)?;
    let n = center.len();
    NodeMut::shift_right(&mut center, &mut right, n)?;
    parent.remove(index..index + 1)?;
    tx.dec(center_block..center_block + 1)?;
    // This tells the parent the first key of the right one, too, if both stay.
    join2(tx, parent_guard, index - 1, left_guard, right_guard)
}

/// Tells the parent a child's first key.
fn set_first_key(parent: &mut NodeMut<'_>, index: usize, child: &NodeMut<'_>) -> Result {
    match child.first_key() {
        Some(key) => parent.set_key(index, key),
        None => Ok(()),
    }
}
