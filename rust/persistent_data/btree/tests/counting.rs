// SPDX-License-Identifier: GPL-2.0

//! A transaction that keeps reference counts in memory, and compares them to what trees refer to.

use std::collections::{
    BTreeMap,
    HashMap,
    HashSet, //
};

use zerocopy::little_endian::U64;
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

use super::super::{
    node::{
        min_entries,
        Node,
        Shape, //
    },
    Value,
    ValueType,
    VALIDATOR, //
};
use crate::{
    block::{
        BlockNr,
        BlockRange,
        Validator, //
    },
    block_manager::{
        BlockManager,
        Guard,
        WriteGuard, //
    },
    error::{
        Error,
        Result, //
    },
    memory::MemoryBm,
    transaction::{
        Shadow,
        Transaction, //
    },
};

/// A transaction on a device in memory; no block is used twice.
pub(crate) struct CountingTx<'b> {
    pub(crate) bm: &'b MemoryBm,
    counts: HashMap<BlockNr, u32>,
    shadows: HashSet<BlockNr>,
    next: BlockNr,
}

impl<'b> CountingTx<'b> {
    pub(crate) fn new(bm: &'b MemoryBm) -> Self {
        Self {
            bm,
            counts: HashMap::new(),
            shadows: HashSet::new(),
            next: 1,
        }
    }

    /// The same counts, as they were committed, on another device with the same content.
    pub(crate) fn reopened<'c>(&self, bm: &'c MemoryBm) -> CountingTx<'c> {
        CountingTx {
            bm,
            counts: self.counts.clone(),
            shadows: HashSet::new(),
            next: self.next.max(100),
        }
    }

    /// Makes all changes stable; what is there now is copied before it is changed again.
    pub(crate) fn commit(&mut self) {
        self.bm.flush().unwrap();
        self.shadows.clear();
    }

    /// The reference counts of all blocks in use.
    pub(crate) fn counts(&self) -> BTreeMap<BlockNr, u32> {
        self.counts.clone().into_iter().collect()
    }
}

impl<'b> Transaction<'b> for CountingTx<'b> {
    type Bm = MemoryBm;

    fn bm(&self) -> &'b MemoryBm {
        self.bm
    }

    fn new_block(&mut self, validator: &'static Validator) -> Result<WriteGuard<'b, MemoryBm>> {
        let block = self.next;
        if block >= self.bm.nr_blocks() {
            return Err(Error::NoSpace);
        }
        self.next += 1;
        self.counts.insert(block, 1);
        self.shadows.insert(block);
        self.bm.write_zero(block, validator)
    }

    fn shadow(
        &mut self,
        block: BlockNr,
        validator: &'static Validator,
    ) -> Result<Shadow<'b, MemoryBm>> {
        let count = self.ref_count(block)?;
        if count == 0 {
            return Err(Error::RefCount(block));
        }
        if count == 1 && self.shadows.contains(&block) {
            return Ok(Shadow {
                guard: self.bm.write(block, validator)?,
                was_shared: false,
            });
        }
        let old = self.bm.read(block, validator)?;
        let mut guard = self.new_block(validator)?;
        guard.copy_from_slice(&old[..]);
        drop(old);
        self.dec(block..block + 1)?;
        Ok(Shadow {
            guard,
            was_shared: count > 1,
        })
    }

    fn inc(&mut self, blocks: BlockRange) -> Result {
        for block in blocks {
            if block >= self.bm.nr_blocks() {
                return Err(Error::OutOfBounds(block));
            }
            *self.counts.entry(block).or_insert(0) += 1;
        }
        Ok(())
    }

    fn dec(&mut self, blocks: BlockRange) -> Result {
        for block in blocks {
            match self.counts.get_mut(&block) {
                Some(1) => {
                    self.counts.remove(&block);
                }
                Some(count) => *count -= 1,
                None => return Err(Error::RefCount(block)),
            }
        }
        Ok(())
    }

    fn ref_count(&self, block: BlockNr) -> Result<u32> {
        if block >= self.bm.nr_blocks() {
            return Err(Error::OutOfBounds(block));
        }
        Ok(self.counts.get(&block).copied().unwrap_or(0))
    }
}

/// Values that are told apart by a number.
pub(crate) trait TestValue: Value {
    fn new(id: u64) -> Self;
    fn id(&self) -> u64;
}

impl TestValue for U64 {
    fn new(id: u64) -> Self {
        U64::new(id)
    }

    fn id(&self) -> u64 {
        self.get()
    }
}

/// A value so large that only six fit a leaf, so that small trees are deep.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Fat {
    id: U64,
    fill: [u8; 600],
}

impl TestValue for Fat {
    fn new(id: u64) -> Self {
        Fat {
            id: U64::new(id),
            fill: [id as u8; 600],
        }
    }

    fn id(&self) -> u64 {
        assert!(self.fill.iter().all(|&b| b == self.id.get() as u8));
        self.id.get()
    }
}

/// How many owners each value has.
#[derive(Default)]
pub(crate) struct Owned(pub(crate) BTreeMap<u64, u64>);

impl Owned {
    pub(crate) fn add(&mut self, id: u64) {
        *self.0.entry(id).or_insert(0) += 1;
    }

    pub(crate) fn take(&mut self, id: u64) {
        match self.0.get_mut(&id) {
            Some(1) => {
                self.0.remove(&id);
            }
            Some(n) => *n -= 1,
            None => panic!("value {id} has no owner to lose"),
        }
    }
}

/// The type of values whose owners are counted.
pub(crate) struct Counted<'o, V>(pub(crate) &'o mut Owned, core::marker::PhantomData<V>);

impl<'o, V> Counted<'o, V> {
    pub(crate) fn new(owned: &'o mut Owned) -> Self {
        Self(owned, core::marker::PhantomData)
    }
}

impl<V: TestValue> ValueType for Counted<'_, V> {
    type Value = V;

    fn inc<'b, T: Transaction<'b>>(&mut self, _: &mut T, values: &[V]) -> Result {
        values.iter().for_each(|v| self.0.add(v.id()));
        Ok(())
    }

    fn dec<'b, T: Transaction<'b>>(&mut self, _: &mut T, values: &[V]) -> Result {
        values.iter().for_each(|v| self.0.take(v.id()));
        Ok(())
    }

    fn equal(&self, a: &V, b: &V) -> bool {
        a.id() == b.id()
    }
}

/// What some trees refer to.
#[derive(Default)]
pub(crate) struct References {
    pub(crate) blocks: BTreeMap<BlockNr, u32>,
    pub(crate) values: Owned,
    /// The height of the part of a tree at each node, of one level.
    heights: BTreeMap<BlockNr, usize>,
    pub(super) nr_entries: usize,
    pub(super) nr_leaf_slots: usize,
}

impl References {
    /// Adds a reference to the tree of `nr_levels` levels with that root, and checks its shape.
    pub(super) fn add<V: TestValue>(&mut self, bm: &MemoryBm, root: BlockNr, nr_levels: usize) {
        self.add_node::<V>(bm, root, nr_levels, None);
    }

    /// Returns the height of the node.
    fn add_node<V: TestValue>(
        &mut self,
        bm: &MemoryBm,
        block: BlockNr,
        nr_levels: usize,
        bounds: Option<(u64, Option<u64>)>,
    ) -> usize {
        let height = self.add_new_node::<V>(bm, block, nr_levels, bounds);
        *self.heights.entry(block).or_insert(height)
    }

    fn add_new_node<V: TestValue>(
        &mut self,
        bm: &MemoryBm,
        block: BlockNr,
        nr_levels: usize,
        bounds: Option<(u64, Option<u64>)>,
    ) -> usize {
        let count = self.blocks.entry(block).or_insert(0);
        *count += 1;
        let is_new = *count == 1;

        let guard = bm.read(block, &VALIDATOR).unwrap();
        let shape = Shape::of(&guard, guard.location()).unwrap();
        assert_eq!(shape.max % 3, 0);
        if nr_levels > 1 {
            let (keys, children, is_internal) = match Node::<U64>::new(&guard, block).unwrap() {
                Node::Internal(e) => (e.keys, e.values, true),
                Node::Leaf(e) => (e.keys, e.values, false),
            };
            check_bounds(keys, bounds, shape.max);
            if !is_internal {
                for child in children.iter().filter(|_| is_new) {
                    self.add_node::<V>(bm, child.get(), nr_levels - 1, None);
                }
                return 1;
            }
            return self.add_children::<V>(bm, keys, children, nr_levels, bounds, is_new);
        }
        match Node::<V>::new(&guard, block).unwrap() {
            Node::Leaf(e) => {
                check_bounds(e.keys, bounds, shape.max);
                if is_new {
                    e.values.iter().for_each(|v| self.values.add(v.id()));
                    self.nr_entries += shape.len;
                    self.nr_leaf_slots += shape.max;
                }
                1
            }
            Node::Internal(e) => {
                check_bounds(e.keys, bounds, shape.max);
                self.add_children::<V>(bm, e.keys, e.values, nr_levels, bounds, is_new)
            }
        }
    }

    fn add_children<V: TestValue>(
        &mut self,
        bm: &MemoryBm,
        keys: &[U64],
        children: &[U64],
        nr_levels: usize,
        bounds: Option<(u64, Option<u64>)>,
        is_new: bool,
    ) -> usize {
        let mut heights = HashSet::new();
        for (i, child) in children.iter().enumerate() {
            let end = match keys.get(i + 1) {
                Some(k) => Some(k.get()),
                None => bounds.and_then(|(_, end)| end),
            };
            let bounds = Some((keys[i].get(), end));
            if is_new {
                heights.insert(self.add_node::<V>(bm, child.get(), nr_levels, bounds));
            }
        }
        if !is_new {
            return 0;
        }
        assert_eq!(heights.len(), 1, "leaves at different depths");
        1 + heights.into_iter().next().unwrap()
    }

    /// Checks that the counts are what the trees refer to, no more and no less.
    pub(super) fn check(&self, tx: &CountingTx<'_>, owned: &Owned) {
        assert_eq!(self.blocks, tx.counts());
        assert_eq!(self.values.0, owned.0);
    }
}

/// Checks what `thin_check` checks of a node that is not the root, and that keys are where they belong.
fn check_bounds(keys: &[U64], bounds: Option<(u64, Option<u64>)>, max: usize) {
    assert!(keys.windows(2).all(|k| k[0] < k[1]));
    if let Some((begin, end)) = bounds {
        assert!(
            keys.len() >= min_entries(max),
            "only {} entries",
            keys.len()
        );
        assert!(keys[0] >= begin);
        assert!(end.is_none_or(|end| keys[keys.len() - 1] < end));
    }
}
