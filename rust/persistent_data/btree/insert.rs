// SPDX-License-Identifier: GPL-2.0

//! Adding entries.
//!
//! There is always space in the parent of a node that must be split, because full nodes are split on the
//! way down.

use core::ops::DerefMut;

use zerocopy::little_endian::U64;

use super::{
    finger::Finger,
    new_leaf,
    node::{
        max_entries,
        Kind,
        NodeMut,
        Shape,
        CHILD_SIZE, //
    },
    rebalance::{
        balance2,
        balance3, //
    },
    shadow::{
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
    platform::{
        TryVec,
        Vec, //
    },
    transaction::Transaction,
};

/// How many entries a sibling must have space for, so that it is worth to move some there.
const WORTHWHILE: usize = 8;

impl<V: Value, const L: usize> Tree<V, L> {
    /// Maps `keys` to `value`, and makes the trees of the upper levels as needed.
    ///
    /// Returns whether the entry is new. If not, the value that was there loses its owner, unless
    /// [`equal`](ValueType::equal) holds. The reference that comes with `value` becomes the tree's.
    pub fn insert<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        keys: &[u64; L],
        value: V,
    ) -> Result<bool> {
        let Some((&last, upper_keys)) = keys.split_last() else {
            return Err(Error::Invalid);
        };
        let mut root = self.root();
        let mut upper = None;

        for (level, &key) in upper_keys.iter().enumerate() {
            let mut finger = Finger::new(root);
            finger.seek(tx, &mut Blocks, key)?;
            self.link(&mut upper, finger.root())?;
            let mut guard = finger.into_leaf()?;
            let mut leaf = NodeMut::of(&mut guard)?;
            let index = match leaf.find(key) {
                Ok(index) => {
                    root = leaf.child(index)?;
                    index
                }
                Err(index) => {
                    let is_bottom = level + 2 == L;
                    let size = if is_bottom {
                        size_of::<V>()
                    } else {
                        CHILD_SIZE
                    };
                    root = new_leaf(tx, size)?.location();
                    leaf.insert(index, key, &U64::new(root))?;
                    index
                }
            };
            upper = Some((guard, index));
        }

        let mut finger = Finger::new(root);
        finger.seek(tx, vt, last)?;
        self.link(&mut upper, finger.root())?;
        let mut leaf = finger.leaf()?;
        let index = match leaf.find(last) {
            Ok(index) => index,
            Err(index) => {
                leaf.insert(index, last, &value)?;
                return Ok(true);
            }
        };
        let old = leaf.values::<V>()?.get(index).copied();
        leaf.set_value(index, &value)?;
        drop(finger);
        if let Some(old) = old {
            if !vt.equal(&old, &value) {
                vt.dec(tx, &[old])?;
            }
        }
        Ok(false)
    }
}

impl<V: Value> Tree<V, 1> {
    /// Maps the keys of `entries`, which must ascend, to their values, and returns how many of the keys are new.
    ///
    /// As if each were [`insert`](Self::insert)ed, but each node is gone to once for all entries that belong there.
    /// Gives [`Error::Invalid`] if the keys do not ascend; then some were inserted.
    pub fn insert_sorted<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        entries: impl Iterator<Item = (u64, V)> + Clone,
    ) -> Result<u64> {
        let mut nr_new = 0;
        let mut overwritten = Vec::new();
        let mut finger = Finger::new(self.root());
        let mut entries = Ascending::new(entries);
        while let Some((key, _)) = entries.first()? {
            let bound = finger.seek(tx, vt, key)?;
            self.root = finger.root();
            let mut leaf = finger.leaf()?;
            while let Some((key, value)) = entries.first()? {
                if bound.is_some_and(|bound| key >= bound) {
                    break;
                }
                match leaf.find(key) {
                    Ok(index) => {
                        let old = leaf.values::<V>()?.get(index).copied();
                        if let Some(old) = old.filter(|old| !vt.equal(old, &value)) {
                            overwritten.try_push(old)?;
                        }
                        leaf.set_value(index, &value)?;
                        entries.skip(1);
                    }
                    Err(index) => {
                        let next = leaf.keys().get(index).map(|key| key.get());
                        let n = entries.count_before(next.or(bound), leaf.max() - leaf.len());
                        if n == 0 {
                            // The leaf is full.
                            break;
                        }
                        leaf.insert_run(index, n, entries.rest())?;
                        entries.skip(n);
                        nr_new += n as u64;
                    }
                }
            }
        }
        drop(finger);
        vt.dec(tx, &overwritten)?;
        Ok(nr_new)
    }

    /// Changes the value of `key` in place by `f`.
    ///
    /// What the old value owned and what the new one owns is up to `f`, which sees the transaction and
    /// the value. Gives [`Error::NoData`] if there is no such key.
    pub fn update<'b, T: Transaction<'b>, VT: ValueType<Value = V>, X>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        key: u64,
        f: impl FnOnce(&mut T, &mut VT, &mut V) -> Result<X>,
    ) -> Result<X> {
        let mut node = shadow(tx, vt, self.root())?;
        *self = Self::from_root(node.location());
        for _ in 0..MAX_DEPTH {
            let mut view = NodeMut::of(&mut node)?;
            let index = view.floor(key).ok_or(Error::NoData)?;
            if view.shape().kind == Kind::Leaf {
                if view.keys().get(index).map(|k| k.get()) != Some(key) {
                    return Err(Error::NoData);
                }
                let value = view.values::<V>()?.get(index).copied();
                let mut value = value.ok_or(Error::NoData)?;
                let x = f(tx, vt, &mut value)?;
                view.set_value(index, &value)?;
                return Ok(x);
            }
            node = shadow_child(tx, vt, &mut view, index)?;
        }
        Err(Error::Corrupt(self.root(), Corruption::TooDeep))
    }
}

/// Moves the entries of a root to two new children. It keeps its block.
pub(super) fn split_beneath<'b, T: Transaction<'b>>(
    tx: &mut T,
    root_guard: &mut WriteGuard<'b, T::Bm>,
) -> Result {
    let root_block = root_guard.location();
    let mut root = NodeMut::new(root_guard, root_block)?;
    let mut right_guard = tx.new_block(&VALIDATOR)?;
    let mut left_guard = tx.new_block(&VALIDATOR)?;
    let (left_block, right_block) = (left_guard.location(), right_guard.location());
    let mut right = init_sibling(&mut right_guard, &root)?;
    let mut left = init_sibling(&mut left_guard, &root)?;

    let nr_left = root.len() / 2;
    let nr_right = root.len() - nr_left;
    NodeMut::shift_right(&mut root, &mut right, nr_right)?;
    NodeMut::shift_right(&mut root, &mut left, nr_left)?;
    let (Some(left_key), Some(right_key)) = (left.first_key(), right.first_key()) else {
        return Err(Error::Corrupt(root_block, Corruption::EmptyNode));
    };

    let mut root = NodeMut::init(
        root_guard,
        root_block,
        Kind::Internal,
        max_entries(CHILD_SIZE),
        CHILD_SIZE,
    )?;
    root.insert(0, left_key, &U64::new(left_block))?;
    root.insert(1, right_key, &U64::new(right_block))
}

/// Makes space in a full node, the child at `index` of `parent`. Returns the node that `key` belongs to
/// then.
///
/// Entries move to a sibling that has space enough. A sibling that is shared is left alone, because to
/// copy it would take more space than is gained. Failing that, two nodes become three. At either end of
/// the parent one node becomes two, which is better for ascending and descending sequences.
pub(super) fn rebalance_or_split<'b, T: Transaction<'b>, VT: ValueType>(
    tx: &mut T,
    vt: &mut VT,
    parent: &mut WriteGuard<'b, T::Bm>,
    index: usize,
    node: WriteGuard<'b, T::Bm>,
    key: u64,
) -> Result<WriteGuard<'b, T::Bm>> {
    let mut view = NodeMut::of(parent)?;
    let nr_children = view.len();
    let left = match index.checked_sub(1) {
        Some(left) => Some(view.child(left)?),
        None => None,
    };
    let right = match index + 1 < nr_children {
        true => Some(view.child(index + 1)?),
        false => None,
    };

    let mut shared = false;
    if let Some(left_block) = left {
        match free_space(tx, left_block)? {
            None => shared = true,
            Some(space) if space >= WORTHWHILE => {
                let left = shadow_child(tx, vt, &mut view, index - 1)?;
                return balance_pair(parent, index, left, node, key);
            }
            Some(_) => (),
        }
    }
    if let Some(right_block) = right {
        match free_space(tx, right_block)? {
            None => shared = true,
            Some(space) if space >= WORTHWHILE => {
                let right = shadow_child(tx, vt, &mut view, index + 1)?;
                return balance_pair(parent, index + 1, node, right, key);
            }
            Some(_) => (),
        }
    }

    if shared || nr_children <= 2 || left.is_none() || right.is_none() {
        split_one(tx, parent, index, node, key)
    } else {
        let left = shadow_child(tx, vt, &mut view, index - 1)?;
        split_two(tx, parent, index, left, node, key)
    }
}

/// How many entries a node has space for, or `None` if it is shared.
fn free_space<'b, T: Transaction<'b>>(tx: &T, block: BlockNr) -> Result<Option<usize>> {
    if tx.ref_count(block)? > 1 {
        return Ok(None);
    }
    let guard = tx.bm().read(block, &VALIDATOR)?;
    let shape = Shape::of(&guard, block)?;
    Ok(Some(shape.max - shape.len))
}

/// Evens out two children, the right one of which is at `right_index`. Returns that for `key`.
fn balance_pair<G: Guard + DerefMut>(
    parent: &mut G,
    right_index: usize,
    mut left: G,
    mut right: G,
    key: u64,
) -> Result<G> {
    let blocks = (parent.location(), left.location(), right.location());
    let mut right_node = NodeMut::new(&mut right, blocks.2)?;
    balance2(&mut NodeMut::new(&mut left, blocks.1)?, &mut right_node)?;
    let right_key = right_node
        .first_key()
        .ok_or(Error::Corrupt(blocks.2, Corruption::EmptyNode))?;
    NodeMut::new(parent, blocks.0)?.set_key(right_index, right_key)?;
    Ok(if key < right_key { left } else { right })
}

/// Moves half of the child at `index` to a new one after it. Returns that for `key`.
fn split_one<'b, T: Transaction<'b>>(
    tx: &mut T,
    parent: &mut WriteGuard<'b, T::Bm>,
    index: usize,
    mut left: WriteGuard<'b, T::Bm>,
    key: u64,
) -> Result<WriteGuard<'b, T::Bm>> {
    let left_block = left.location();
    let parent_block = parent.location();
    let mut left_node = NodeMut::new(&mut left, left_block)?;
    let mut right = tx.new_block(&VALIDATOR)?;
    let right_block = right.location();
    let mut right_node = init_sibling(&mut right, &left_node)?;
    balance2(&mut left_node, &mut right_node)?;
    let right_key = right_node
        .first_key()
        .ok_or(Error::Corrupt(left_block, Corruption::EmptyNode))?;
    NodeMut::new(parent, parent_block)?.insert(index + 1, right_key, &U64::new(right_block))?;
    Ok(if key < right_key { left } else { right })
}

/// Moves a third of two children, the right one of which is at `index`, to a new one between them. Returns
/// that for `key`.
fn split_two<'b, T: Transaction<'b>>(
    tx: &mut T,
    parent: &mut WriteGuard<'b, T::Bm>,
    index: usize,
    mut left: WriteGuard<'b, T::Bm>,
    mut right: WriteGuard<'b, T::Bm>,
    key: u64,
) -> Result<WriteGuard<'b, T::Bm>> {
    let parent_block = parent.location();
    let (left_block, right_block) = (left.location(), right.location());
    let mut left_node = NodeMut::new(&mut left, left_block)?;
    let mut right_node = NodeMut::new(&mut right, right_block)?;
    let mut middle = tx.new_block(&VALIDATOR)?;
    let middle_block = middle.location();
    let mut middle_node = init_sibling(&mut middle, &left_node)?;
    balance3(&mut left_node, &mut middle_node, &mut right_node)?;
    let (Some(middle_key), Some(right_key)) = (middle_node.first_key(), right_node.first_key())
    else {
        return Err(Error::Corrupt(right_block, Corruption::EmptyNode));
    };

    let mut parent = NodeMut::new(parent, parent_block)?;
    parent.set_key(index, right_key)?;
    parent.insert(index, middle_key, &U64::new(middle_block))?;
    Ok(if key < middle_key {
        left
    } else if key < right_key {
        middle
    } else {
        right
    })
}

/// Makes an empty node of a new block, alike to `node`.
fn init_sibling<'a, G: Guard + DerefMut>(
    guard: &'a mut G,
    node: &NodeMut<'_>,
) -> Result<NodeMut<'a>> {
    let block = guard.location();
    let shape = node.shape();
    NodeMut::init(guard, block, shape.kind, shape.max, shape.value_size)
}

/// Entries whose keys should ascend.
struct Ascending<I> {
    entries: I,
    /// No key that is left may be less than this; none at all may be left if there is no such number.
    least: Option<u64>,
}

impl<V: Value, I: Iterator<Item = (u64, V)> + Clone> Ascending<I> {
    fn new(entries: I) -> Self {
        Self {
            entries,
            least: Some(0),
        }
    }

    /// All that are left.
    fn rest(&self) -> I {
        self.entries.clone()
    }

    /// The first one that is left.
    fn first(&self) -> Result<Option<(u64, V)>> {
        match (self.rest().next(), self.least) {
            (Some((key, _)), Some(least)) if key < least => Err(Error::Invalid),
            (Some(_), None) => Err(Error::Invalid),
            (first, _) => Ok(first),
        }
    }

    /// How many of the first `max` have keys that ascend and are less than `end`.
    fn count_before(&self, end: Option<u64>, max: usize) -> usize {
        let mut least = self.least;
        self.rest()
            .take(max)
            .take_while(|&(key, _)| {
                let is_next = least.is_some_and(|least| key >= least);
                least = key.checked_add(1);
                is_next && end.is_none_or(|end| key < end)
            })
            .count()
    }

    /// Leaves out the first `n`.
    fn skip(&mut self, n: usize) {
        for _ in 0..n {
            let key = self.entries.next().map(|(key, _)| key);
            self.least = key.and_then(|key| key.checked_add(1));
        }
    }
}
