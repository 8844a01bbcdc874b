// SPDX-License-Identifier: GPL-2.0

//! Adding entries.
//!
//! There is always space in the parent of a node that must be split, because full nodes are split on the
//! way down.

use core::ops::DerefMut;

use zerocopy::little_endian::U64;

use super::{
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
    transaction::Transaction,
};

/// How many entries a sibling must have space for, so that it is worth to move some there.
const WORTHWHILE: usize = 8;

/// A place in a writable leaf.
struct Slot<'b, B: BlockManager + 'b> {
    leaf: WriteGuard<'b, B>,
    index: usize,
    /// Whether the key is there already. If not, the leaf has space for it.
    found: bool,
}

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
            let (new_root, mut slot) = make_slot(tx, &mut Blocks, root, key)?;
            self.link(&mut upper, new_root)?;
            let block = slot.leaf.location();
            if slot.found {
                root = NodeMut::new(&mut slot.leaf, block)?.child(slot.index)?;
            } else {
                let is_bottom = level + 2 == L;
                let size = if is_bottom {
                    size_of::<V>()
                } else {
                    CHILD_SIZE
                };
                root = new_leaf(tx, size)?.location();
                NodeMut::new(&mut slot.leaf, block)?.insert(slot.index, key, &U64::new(root))?;
            }
            upper = Some((slot.leaf, slot.index));
        }

        let (new_root, mut slot) = make_slot(tx, vt, root, last)?;
        self.link(&mut upper, new_root)?;
        let block = slot.leaf.location();
        let mut leaf = NodeMut::new(&mut slot.leaf, block)?;
        if !slot.found {
            leaf.insert(slot.index, last, &value)?;
            return Ok(true);
        }
        let old = leaf.values::<V>()?.get(slot.index).copied();
        leaf.set_value(slot.index, &value)?;
        if let Some(old) = old {
            if !vt.equal(&old, &value) {
                vt.dec(tx, &[old])?;
            }
        }
        Ok(false)
    }
}

impl<V: Value> Tree<V, 1> {
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
            let block = node.location();
            let mut view = NodeMut::new(&mut node, block)?;
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
            node = shadow_child(tx, vt, &mut node, index)?;
        }
        Err(Error::Corrupt(self.root(), Corruption::TooDeep))
    }
}

/// Goes down one level to the leaf of `key`, and makes space for it where it is missing.
///
/// Returns the new root, too.
fn make_slot<'b, T: Transaction<'b>, VT: ValueType>(
    tx: &mut T,
    vt: &mut VT,
    root: BlockNr,
    key: u64,
) -> Result<(BlockNr, Slot<'b, T::Bm>)> {
    let mut node = shadow(tx, vt, root)?;
    let root = node.location();
    let mut parent: Option<(WriteGuard<'b, T::Bm>, usize)> = None;

    for _ in 0..MAX_DEPTH {
        if !has_space(&mut node, key)? {
            node = match &mut parent {
                None => {
                    split_beneath(tx, &mut node)?;
                    node
                }
                Some((parent, index)) => rebalance_or_split(tx, vt, parent, *index, node, key)?,
            };
        }

        let block = node.location();
        let mut view = NodeMut::new(&mut node, block)?;
        if view.shape().kind == Kind::Leaf {
            let index = view.ceil(key);
            let found = view.keys().get(index).is_some_and(|k| k.get() == key);
            let leaf = node;
            return Ok((root, Slot { leaf, index, found }));
        }
        let index = match view.floor(key) {
            Some(index) => index,
            None => {
                // The first child will hold a key lower than all.
                view.set_key(0, key)?;
                0
            }
        };
        let child = shadow_child(tx, vt, &mut node, index)?;
        parent = Some((node, index));
        node = child;
    }
    Err(Error::Corrupt(root, Corruption::TooDeep))
}

/// Whether an insertion of `key` at or below the node can add an entry to it.
fn has_space<G: Guard + DerefMut>(guard: &mut G, key: u64) -> Result<bool> {
    let block = guard.location();
    let node = NodeMut::new(guard, block)?;
    if node.len() < node.max() {
        return Ok(true);
    }
    // A leaf needs no space for a value that is overwritten.
    let floor = node.floor(key).and_then(|i| node.keys().get(i));
    Ok(node.shape().kind == Kind::Leaf && floor.is_some_and(|k| k.get() == key))
}

/// Moves the entries of a root to two new children. It keeps its block.
fn split_beneath<'b, T: Transaction<'b>>(
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
fn rebalance_or_split<'b, T: Transaction<'b>, VT: ValueType>(
    tx: &mut T,
    vt: &mut VT,
    parent: &mut WriteGuard<'b, T::Bm>,
    index: usize,
    node: WriteGuard<'b, T::Bm>,
    key: u64,
) -> Result<WriteGuard<'b, T::Bm>> {
    let parent_block = parent.location();
    let view = NodeMut::new(parent, parent_block)?;
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
                let left = shadow_child(tx, vt, parent, index - 1)?;
                return balance_pair(parent, index, left, node, key);
            }
            Some(_) => (),
        }
    }
    if let Some(right_block) = right {
        match free_space(tx, right_block)? {
            None => shared = true,
            Some(space) if space >= WORTHWHILE => {
                let right = shadow_child(tx, vt, parent, index + 1)?;
                return balance_pair(parent, index + 1, node, right, key);
            }
            Some(_) => (),
        }
    }

    if shared || nr_children <= 2 || left.is_none() || right.is_none() {
        split_one(tx, parent, index, node, key)
    } else {
        let left = shadow_child(tx, vt, parent, index - 1)?;
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
