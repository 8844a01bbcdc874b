// SPDX-License-Identifier: GPL-2.0

//! What two trees differ in.
//!
//! Both trees are walked at once, in the order of keys. Where both walks come to the same block, the subtree under it
//! belongs to both trees and holds nothing that differs, so it is stepped over. For this to happen wherever it can,
//! the walks must not pass each other by: of two subtrees that are not the same, the one that comes first is gone
//! into; where they overlap, the higher one. So it does not matter whether the trees have the same height, nor where
//! their nodes were split.

use core::cmp::Ordering;

use zerocopy::{
    little_endian::U64,
    IntoBytes, //
};

use super::{
    node::{
        Entries,
        Node, //
    },
    subtree::Subtree,
    visit::visit,
    Tree,
    Value,
    VALIDATOR, //
};
use crate::{
    block::BlockNr,
    block_manager::{
        Guard,
        ReadGuard,
        Reader, //
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
};

impl<V: Value> Tree<V, 1> {
    /// Calls `f` for each key at which this tree and `other` do not hold the same: with the values that they hold, of
    /// which `equal`, which must be true of a value and itself, has said that they differ if there are two. The keys
    /// ascend.
    ///
    /// Subtrees that both have are not read, but for a few beside a difference. So this takes as long as there are
    /// differences, not entries. Of each tree it holds one node of every height.
    pub fn diff<'b, R: Reader<'b>>(
        &self,
        other: &Self,
        reader: R,
        equal: impl Fn(&V, &V) -> bool,
        f: &mut dyn FnMut(u64, Option<V>, Option<V>) -> Result,
    ) -> Result {
        Pair::new(reader, self, other, Shared::Skip)?.run(equal, f)
    }

    /// As [`diff`](Self::diff), but calls `f` for each key that one of the trees holds, whether it differs or not.
    ///
    /// Subtrees that both have are read once.
    pub fn merge<'b, R: Reader<'b>>(
        &self,
        other: &Self,
        reader: R,
        f: &mut dyn FnMut(u64, Option<V>, Option<V>) -> Result,
    ) -> Result {
        Pair::new(reader, self, other, Shared::Walk)?.run(|_, _| false, f)
    }
}

/// What to do with what both trees have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shared {
    Skip,
    Walk,
}

/// The number of entries that are compared at once.
const STRETCH: usize = 16;

/// Whether the next [`STRETCH`] entries of two leaves are the same.
fn are_same<V: Value>(left: &Entries<'_, V>, i: usize, right: &Entries<'_, V>, j: usize) -> bool {
    fn part<T>(all: &[T], begin: usize) -> Option<&[T]> {
        all.get(begin..begin.checked_add(STRETCH)?)
    }
    match (part(left.keys, i), part(right.keys, j)) {
        (Some(l), Some(r)) if l.as_bytes() == r.as_bytes() => {}
        _ => return false,
    }
    match (part(left.values, i), part(right.values, j)) {
        (Some(l), Some(r)) => l.as_bytes() == r.as_bytes(),
        _ => false,
    }
}

/// Whether to go into `one` before `other`, which is another.
fn is_first(one: &Subtree, other: &Subtree) -> bool {
    if one.end.is_some_and(|end| end <= other.begin) {
        return true;
    }
    if other.end.is_some_and(|end| end <= one.begin) {
        return false;
    }
    match one.height.cmp(&other.height) {
        Ordering::Greater => true,
        Ordering::Less => false,
        Ordering::Equal => one.begin <= other.begin,
    }
}

/// An internal node that a walk is in.
struct Frame<G> {
    guard: G,
    node: Subtree,
    /// The child that comes next.
    next: usize,
}

impl<G: Guard> Frame<G> {
    fn children<V: Value>(&self) -> Result<Entries<'_, U64>> {
        match Node::<V>::new(&self.guard, self.node.block)? {
            Node::Internal(entries) => Ok(entries),
            Node::Leaf(_) => Err(Error::Corrupt(self.node.block, Corruption::Unbalanced)),
        }
    }

    fn next_child<V: Value>(&mut self) -> Result<Option<Subtree>> {
        let child = self.node.child(&self.children::<V>()?, self.next);
        if child.is_some() {
            self.next += 1;
        }
        Ok(child)
    }

    /// The blocks of the children that the walk is not behind, and that begin before `end`.
    fn rest<V: Value>(&self, end: Option<u64>) -> Result<&[U64]> {
        let entries = self.children::<V>()?;
        let first = self.next.saturating_sub(1);
        let last = end.map_or(entries.keys.len(), |end| entries.ceil(end));
        Ok(entries.values.get(first..last).unwrap_or_default())
    }
}

/// Where a walk is.
enum Place<G> {
    /// Before a subtree.
    Before(Subtree),
    /// In a leaf that has entries, before the one at the index, which exists.
    In(G, Subtree, usize),
    /// Behind everything.
    End,
}

/// A walk through one tree.
struct Walk<'b, R: Reader<'b>, V> {
    reader: R,
    /// The height of its tree.
    height: usize,
    /// The internal nodes on the way to the place.
    stack: Vec<Frame<ReadGuard<'b, R::Bm>>>,
    place: Place<ReadGuard<'b, R::Bm>>,
    _values: core::marker::PhantomData<V>,
}

impl<'b, R: Reader<'b>, V: Value> Walk<'b, R, V> {
    fn new(reader: R, tree: Subtree) -> Self {
        Self {
            reader,
            height: tree.height,
            stack: Vec::new(),
            place: Place::Before(tree),
            _values: core::marker::PhantomData,
        }
    }

    /// The subtree that the walk is at the beginning of, if it is.
    fn beginning(&self) -> Option<Subtree> {
        match self.place {
            Place::Before(subtree) | Place::In(_, subtree, 0) => Some(subtree),
            _ => None,
        }
    }

    /// Goes into the subtree that comes next; says whether this was an internal node.
    fn enter(&mut self) -> Result<bool> {
        let Place::Before(node) = self.place else {
            return Ok(false);
        };
        let guard = self.reader.read(node.block, &VALIDATOR)?;
        let is_empty = match node.node::<V>(&guard)? {
            Node::Leaf(entries) => entries.keys.is_empty(),
            Node::Internal(_) => {
                self.stack.try_push(Frame {
                    guard,
                    node,
                    next: 0,
                })?;
                self.go_on()?;
                return Ok(true);
            }
        };
        self.place = match is_empty {
            true => Place::End,
            false => Place::In(guard, node, 0),
        };
        Ok(false)
    }

    /// Goes on to what comes after the leaf that the walk is in, or the subtree that it is before.
    fn go_on(&mut self) -> Result {
        self.place = Place::End;
        while let Some(frame) = self.stack.last_mut() {
            if let Some(child) = frame.next_child::<V>()? {
                self.place = Place::Before(child);
                break;
            }
            self.stack.pop();
        }
        Ok(())
    }

    /// The leaf that the walk is in, and the index of the entry that comes next.
    fn leaf(&self) -> Result<Option<(Entries<'_, V>, usize)>> {
        let Place::In(guard, node, index) = &self.place else {
            return Ok(None);
        };
        match Node::new(guard, node.block)? {
            Node::Leaf(entries) => Ok(Some((entries, *index))),
            Node::Internal(_) => Err(Error::Corrupt(node.block, Corruption::Unbalanced)),
        }
    }

    /// Goes on to the entry at `index` of the leaf that the walk is in.
    fn go_to(&mut self, index: usize, len: usize) -> Result {
        if index >= len {
            return self.go_on();
        }
        if let Place::In(_, _, at) = &mut self.place {
            *at = index;
        }
        Ok(())
    }

    /// Calls `f` with the entries of the leaf that the walk is in, up to `end`; says whether it is still in it.
    fn entries_before(
        &mut self,
        end: Option<u64>,
        mut f: impl FnMut(u64, V) -> Result,
    ) -> Result<bool> {
        let Some((leaf, mut index)) = self.leaf()? else {
            return Ok(false);
        };
        let len = leaf.keys.len();
        while let Some((key, value)) = leaf.get(index) {
            if end.is_some_and(|end| key >= end) {
                break;
            }
            f(key, value)?;
            index += 1;
        }
        self.go_to(index, len)?;
        Ok(index < len)
    }

    /// The internal node of that height that the walk is in.
    fn frame(&self, height: usize) -> Option<&Frame<ReadGuard<'b, R::Bm>>> {
        self.stack.iter().find(|frame| frame.node.height == height)
    }

    /// The node of that height that comes after the one that the walk is in, if both have the same parent. Whether it
    /// is valid will be seen when the walk comes to it.
    fn node_after(&self, height: usize) -> Result<Option<(Subtree, ReadGuard<'b, R::Bm>)>> {
        let Some(parent) = self.frame(height + 1) else {
            return Ok(None);
        };
        let Some(node) = parent.node.child(&parent.children::<V>()?, parent.next) else {
            return Ok(None);
        };
        let read = self.reader.read(node.block, &VALIDATOR);
        Ok(read.ok().map(|data| (node, data)))
    }
}

/// Walks through two trees.
struct Pair<'b, R: Reader<'b>, V> {
    left: Walk<'b, R, V>,
    right: Walk<'b, R, V>,
    shared: Shared,
}

impl<'b, R: Reader<'b>, V: Value> Pair<'b, R, V> {
    fn new(reader: R, left: &Tree<V, 1>, right: &Tree<V, 1>, shared: Shared) -> Result<Self> {
        let (left, right) = (left.root(), right.root());
        // What is the same all over need not be read.
        let whole = |root| match (shared, left == right) {
            (Shared::Skip, true) => Ok(Subtree::unread(root, 0)),
            _ => Subtree::whole::<V, R>(reader, root),
        };
        Ok(Self {
            left: Walk::new(reader, whole(left)?),
            right: Walk::new(reader, whole(right)?),
            shared,
        })
    }

    fn run(
        &mut self,
        equal: impl Fn(&V, &V) -> bool,
        f: &mut dyn FnMut(u64, Option<V>, Option<V>) -> Result,
    ) -> Result {
        loop {
            if let (Some(l), Some(r)) = (self.left.beginning(), self.right.beginning()) {
                if l.block == r.block {
                    self.both(l, f)?;
                    continue;
                }
            }
            match (&self.left.place, &self.right.place) {
                (Place::Before(l), Place::Before(r)) => match is_first(l, r) {
                    true => self.enter_left()?,
                    false => self.enter_right()?,
                },
                (Place::In(..), Place::In(..)) => self.leaves(&equal, f)?,
                (Place::In(..), other) => {
                    let end = match other {
                        Place::Before(r) => Some(r.begin),
                        _ => None,
                    };
                    let stays = self
                        .left
                        .entries_before(end, |key, value| f(key, Some(value), None))?;
                    if stays {
                        self.enter_right()?;
                    }
                }
                (other, Place::In(..)) => {
                    let end = match other {
                        Place::Before(l) => Some(l.begin),
                        _ => None,
                    };
                    let stays = self
                        .right
                        .entries_before(end, |key, value| f(key, None, Some(value)))?;
                    if stays {
                        self.enter_left()?;
                    }
                }
                (Place::Before(_), Place::End) => self.enter_left()?,
                (Place::End, Place::Before(_)) => self.enter_right()?,
                (Place::End, Place::End) => return Ok(()),
            }
        }
    }

    /// Both walks are at the beginning of this subtree.
    fn both(
        &mut self,
        subtree: Subtree,
        f: &mut dyn FnMut(u64, Option<V>, Option<V>) -> Result,
    ) -> Result {
        if self.shared == Shared::Walk {
            visit(
                subtree,
                self.left.reader,
                &mut |_, _| true,
                &mut |_, key, value| f(key, Some(value), Some(value)),
            )?;
        }
        self.left.go_on()?;
        self.right.go_on()
    }

    /// Both walks are in leaves.
    fn leaves(
        &mut self,
        equal: impl Fn(&V, &V) -> bool,
        f: &mut dyn FnMut(u64, Option<V>, Option<V>) -> Result,
    ) -> Result {
        let (Some((left, mut i)), Some((right, mut j))) = (self.left.leaf()?, self.right.leaf()?)
        else {
            return Ok(());
        };
        let (left_len, right_len) = (left.keys.len(), right.keys.len());
        // Most of what two versions of a leaf hold is the same, and need not be looked at one by one.
        let mut next_try = i;
        while let (Some((key, l)), Some((other, r))) = (left.get(i), right.get(j)) {
            if self.shared == Shared::Skip && i >= next_try {
                if are_same(&left, i, &right, j) {
                    i += STRETCH;
                    j += STRETCH;
                    next_try = i;
                    continue;
                }
                next_try = i + STRETCH;
            }
            match key.cmp(&other) {
                Ordering::Less => {
                    f(key, Some(l), None)?;
                    i += 1;
                }
                Ordering::Greater => {
                    f(other, None, Some(r))?;
                    j += 1;
                }
                Ordering::Equal => {
                    if !equal(&l, &r) {
                        f(key, Some(l), Some(r))?;
                    }
                    i += 1;
                    j += 1;
                }
            }
        }
        self.left.go_to(i, left_len)?;
        self.right.go_to(j, right_len)
    }

    fn enter_left(&mut self) -> Result {
        match self.left.enter()? {
            true => self.prefetch(&self.left, &self.right),
            false => Ok(()),
        }
    }

    fn enter_right(&mut self) -> Result {
        match self.right.enter()? {
            true => self.prefetch(&self.right, &self.left),
            false => Ok(()),
        }
    }

    /// Reads ahead what will be wanted of the node that `one` has just gone into; and of the one after it if their
    /// children are leaves, so that the device has something to do while these are compared.
    fn prefetch(&self, one: &Walk<'b, R, V>, other: &Walk<'b, R, V>) -> Result {
        let Some(new) = one.stack.last() else {
            return Ok(());
        };
        let height = new.node.height;
        let is_alone = self.shared == Shared::Walk
            || other.height < height
            || matches!(other.place, Place::End);
        if is_alone {
            self.prefetch_children(&new.children::<V>()?);
        } else if let Some(old) = other.frame(height) {
            let end = match (new.node.end, old.node.end) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            self.prefetch_differing([new.rest::<V>(end)?, old.rest::<V>(end)?])?;
        } else {
            // Once the other walk is in a node of this height, too.
            return Ok(());
        }

        if height > 1 {
            return Ok(());
        }
        let Some((node, data)) = one.node_after(height)? else {
            return Ok(());
        };
        let Ok(Node::Internal(children)) = node.node::<V>(&data) else {
            return Ok(());
        };
        if is_alone {
            self.prefetch_children(&children);
            return Ok(());
        }
        let Some((other_node, other_data)) = other.node_after(height)? else {
            return Ok(());
        };
        if node.block == other_node.block
            || (node.begin, node.end) != (other_node.begin, other_node.end)
        {
            return Ok(());
        }
        match other_node.node::<V>(&other_data) {
            Ok(Node::Internal(other)) => self.prefetch_differing([children.values, other.values]),
            _ => Ok(()),
        }
    }

    fn prefetch_children(&self, children: &Entries<'_, U64>) {
        for child in children.values {
            self.left.reader.prefetch(child.get());
        }
    }

    /// Reads those children of two nodes ahead that only one of them has.
    fn prefetch_differing(&self, children: [&[U64]; 2]) -> Result {
        let mut blocks: Vec<BlockNr> = Vec::new();
        for child in children.into_iter().flatten() {
            blocks.try_push(child.get())?;
        }
        blocks.sort_unstable();
        let mut blocks = blocks.iter().peekable();
        while let Some(&block) = blocks.next() {
            if blocks.next_if_eq(&&block).is_none() {
                self.left.reader.prefetch(block);
            }
        }
        Ok(())
    }
}
