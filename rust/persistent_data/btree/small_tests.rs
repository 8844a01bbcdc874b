// SPDX-License-Identifier: GPL-2.0

//! Small tests, which also run in the kernel, over a few blocks in memory.

use core::cell::{
    Cell,
    Ref,
    RefCell,
    RefMut, //
};
use core::ops::{
    Deref,
    DerefMut, //
};

use crate::{
    block::{
        BlockData,
        BlockNr,
        BlockRange,
        Validator,
        BLOCK_SIZE, //
    },
    block_manager::{
        BlockManager,
        Guard, //
    },
    error::{
        Error,
        Result, //
    },
    platform::{
        TryVec,
        Vec, //
    },
    transaction::{
        Shadow,
        Transaction, //
    },
};

/// A block and its reference count.
struct Slot {
    data: RefCell<Vec<u8>>,
    count: Cell<u32>,
}

/// A few blocks in memory, for tests that also run in the kernel.
pub(crate) struct SmallBm {
    slots: Vec<Slot>,
}

pub(crate) struct SmallGuard<R> {
    data: R,
    block: BlockNr,
}

impl SmallBm {
    pub(crate) fn new(nr_blocks: usize) -> Result<Self> {
        let mut slots = Vec::new();
        for _ in 0..nr_blocks {
            slots.try_push(Slot {
                data: RefCell::new(Vec::try_filled(0, BLOCK_SIZE)?),
                count: Cell::new(0),
            })?;
        }
        Ok(Self { slots })
    }

    fn slot(&self, block: BlockNr) -> Result<&Slot> {
        let index = usize::try_from(block).map_err(|_| Error::OutOfBounds(block))?;
        self.slots.get(index).ok_or(Error::OutOfBounds(block))
    }

    /// How many blocks are in use.
    fn nr_used(&self) -> usize {
        self.slots.iter().filter(|s| s.count.get() > 0).count()
    }
}

impl<R: Deref<Target = BlockData>> Deref for SmallGuard<R> {
    type Target = BlockData;

    fn deref(&self) -> &BlockData {
        &self.data
    }
}

impl<R: DerefMut<Target = BlockData>> DerefMut for SmallGuard<R> {
    fn deref_mut(&mut self) -> &mut BlockData {
        &mut self.data
    }
}

impl<R: Deref<Target = BlockData>> Guard for SmallGuard<R> {
    fn location(&self) -> BlockNr {
        self.block
    }
}

impl BlockManager for SmallBm {
    type ReadGuard<'a> = SmallGuard<Ref<'a, BlockData>>;
    type WriteGuard<'a> = SmallGuard<RefMut<'a, BlockData>>;

    fn nr_blocks(&self) -> BlockNr {
        self.slots.len() as BlockNr
    }

    fn read(&self, block: BlockNr, _: &'static Validator) -> Result<Self::ReadGuard<'_>> {
        self.read_raw(block)
    }

    fn try_read(&self, block: BlockNr, _: &'static Validator) -> Result<Self::ReadGuard<'_>> {
        self.read_raw(block)
    }

    fn read_raw(&self, block: BlockNr) -> Result<Self::ReadGuard<'_>> {
        let data = self.slot(block)?.data.try_borrow();
        let data = data.map_err(|_| Error::Conflict(block))?;
        let data = Ref::filter_map(data, |data| data.as_slice().try_into().ok());
        let data = data.map_err(|_| Error::Invalid)?;
        Ok(SmallGuard { data, block })
    }

    fn write(&self, block: BlockNr, _: &'static Validator) -> Result<Self::WriteGuard<'_>> {
        let data = self.slot(block)?.data.try_borrow_mut();
        let data = data.map_err(|_| Error::Conflict(block))?;
        let data = RefMut::filter_map(data, |data| data.as_mut_slice().try_into().ok());
        let data = data.map_err(|_| Error::Invalid)?;
        Ok(SmallGuard { data, block })
    }

    fn write_zero(
        &self,
        block: BlockNr,
        validator: &'static Validator,
    ) -> Result<Self::WriteGuard<'_>> {
        let mut guard = self.write(block, validator)?;
        guard.fill(0);
        Ok(guard)
    }

    fn prefetch(&self, _: BlockNr) {}

    fn flush(&self) -> Result {
        Ok(())
    }

    fn flush_device(&self) -> Result {
        Ok(())
    }

    fn reset(&mut self) {}

    fn is_read_only(&self) -> bool {
        false
    }

    fn set_read_only(&self, _: bool) {}
}

/// Copies a block whenever it is shared, and takes the lowest free one.
struct SmallTx<'b>(&'b SmallBm);

impl<'b> Transaction<'b> for SmallTx<'b> {
    type Bm = SmallBm;

    fn bm(&self) -> &'b SmallBm {
        self.0
    }

    fn new_block(
        &mut self,
        validator: &'static Validator,
    ) -> Result<<SmallBm as BlockManager>::WriteGuard<'b>> {
        let free = self.0.slots.iter().position(|s| s.count.get() == 0);
        let block = free.ok_or(Error::NoSpace)? as BlockNr;
        self.inc(block..block + 1)?;
        self.0.write_zero(block, validator)
    }

    fn shadow(
        &mut self,
        block: BlockNr,
        validator: &'static Validator,
    ) -> Result<Shadow<'b, SmallBm>> {
        let was_shared = self.ref_count(block)? > 1;
        if !was_shared {
            let guard = self.0.write(block, validator)?;
            return Ok(Shadow { guard, was_shared });
        }
        let old = self.0.read_raw(block)?;
        let mut guard = self.new_block(validator)?;
        guard.copy_from_slice(old.as_slice());
        self.dec(block..block + 1)?;
        Ok(Shadow { guard, was_shared })
    }

    fn inc(&mut self, blocks: BlockRange) -> Result {
        for block in blocks {
            let count = &self.0.slot(block)?.count;
            count.set(count.get() + 1);
        }
        Ok(())
    }

    fn dec(&mut self, blocks: BlockRange) -> Result {
        for block in blocks {
            let count = &self.0.slot(block)?.count;
            count.set(count.get().checked_sub(1).ok_or(Error::RefCount(block))?);
        }
        Ok(())
    }

    fn ref_count(&self, block: BlockNr) -> Result<u32> {
        Ok(self.0.slot(block)?.count.get())
    }
}

#[cfg_attr(dm_thin_kunit, kernel::macros::kunit_tests(persistent_data_btree))]
mod tests {
    use super::super::{
        node::{
            max_entries,
            Kind,
            Node,
            NodeMut, //
        },
        Plain,
        Tree,
        VALIDATOR, //
    };
    use super::*;
    use crate::{
        array::Array,
        bitset::Bitset, //
    };
    use zerocopy::little_endian::U64;

    #[test]
    fn capacity_is_a_multiple_of_three() {
        assert_eq!(max_entries(8), 252);
        assert_eq!(max_entries(4), 336);
        assert_eq!(max_entries(24), 126);
        assert_eq!(max_entries(600), 6);
    }

    #[test]
    fn nodes_are_sealed_and_checked() -> Result {
        let bm = SmallBm::new(1)?;
        let mut guard = bm.write(0, &VALIDATOR)?;
        let mut node = NodeMut::init(&mut guard, 7, Kind::Leaf, 252, 8)?;
        node.insert(0, 10, &U64::new(1))?;
        node.insert(1, 30, &U64::new(3))?;
        node.insert(1, 20, &U64::new(2))?;
        (VALIDATOR.prepare)(&mut guard, 7);
        assert_eq!((VALIDATOR.check)(&guard, 7), Ok(()));
        assert!((VALIDATOR.check)(&guard, 8).is_err());

        let found = match Node::<U64>::new(&guard, 7)? {
            Node::Leaf(e) => (e.find(20), e.find(15), e.floor(15), e.ceil(15), e.floor(9)),
            Node::Internal(_) => return Err(Error::Invalid),
        };
        assert_eq!(found, (Some(U64::new(2)), None, Some(0), 1, None));

        NodeMut::new(&mut guard, 7)?.set_key(1, 10)?;
        (VALIDATOR.prepare)(&mut guard, 7);
        assert!((VALIDATOR.check)(&guard, 7).is_err());
        Ok(())
    }

    #[test]
    fn a_tree_grows_and_shrinks() -> Result {
        let bm = SmallBm::new(60)?;
        let tx = &mut SmallTx(&bm);
        let vt = &mut Plain::new();
        let mut tree = Tree::<U64, 1>::empty(tx)?;
        for i in 0..3000u64 {
            // All numbers below 3000, in an order that is none.
            let key = i * 1009 % 3000;
            assert!(tree.insert(tx, vt, &[key], U64::new(2 * key))?);
        }
        for key in 0..3000 {
            assert_eq!(tree.lookup(&bm, &[key])?, Some(U64::new(2 * key)));
        }
        assert_eq!(tree.highest_key(&bm)?, Some([2999]));
        assert_eq!(tree.lookup_next(&bm, &[3000])?, None);
        let mut cursor = tree.cursor(&bm, false)?;
        cursor.skip(1234)?;
        assert_eq!(cursor.get(), Some((1234, U64::new(2468))));
        drop(cursor);

        assert_eq!(tree.remove_range(tx, vt, 100, 2900)?, 2800);
        for i in 0..100u64 {
            tree.remove(tx, vt, &[i * 37 % 100])?;
        }
        assert_eq!(tree.remove(tx, vt, &[0]), Err(Error::NoData));
        assert_eq!(tree.lowest_key(&bm)?, Some([2900]));
        tree.delete(tx, vt)?;
        assert_eq!(bm.nr_used(), 0);
        Ok(())
    }

    #[test]
    fn sorted_entries_are_inserted_together() -> Result {
        let bm = SmallBm::new(60)?;
        let tx = &mut SmallTx(&bm);
        let vt = &mut Plain::new();
        let mut tree = Tree::<U64, 1>::empty(tx)?;
        let entries = |step: usize| (0..3000u64).step_by(step).map(|i| (i, U64::new(i)));
        assert_eq!(tree.insert_sorted(tx, vt, entries(3))?, 1000);
        assert_eq!(tree.insert_sorted(tx, vt, entries(1))?, 2000);
        for key in 0..3000 {
            assert_eq!(tree.lookup(&bm, &[key])?, Some(U64::new(key)));
        }
        for keys in [[7, 7], [7, 6], [u64::MAX, 0]] {
            let entries = keys.iter().map(|&key| (key, U64::new(1)));
            assert_eq!(tree.insert_sorted(tx, vt, entries), Err(Error::Invalid));
        }
        tree.delete(tx, vt)?;
        assert_eq!(bm.nr_used(), 0);
        Ok(())
    }

    #[test]
    fn a_snapshot_stays_what_it_is() -> Result {
        let bm = SmallBm::new(60)?;
        let tx = &mut SmallTx(&bm);
        let vt = &mut Plain::new();
        let mut tree = Tree::<U64, 2>::empty(tx)?;
        for i in 0..1000 {
            tree.insert(tx, vt, &[i % 3, i], U64::new(i))?;
        }
        let snapshot = tree;
        tx.inc(tree.root()..tree.root() + 1)?;
        for i in 0..1000 {
            tree.insert(tx, vt, &[i % 3, i], U64::new(i + 1))?;
        }
        for i in 0..1000 {
            assert_eq!(snapshot.lookup(&bm, &[i % 3, i])?, Some(U64::new(i)));
            assert_eq!(tree.lookup(&bm, &[i % 3, i])?, Some(U64::new(i + 1)));
        }
        let mut nr = 0;
        snapshot.walk(&bm, &mut |_, _| {
            nr += 1;
            Ok(())
        })?;
        assert_eq!(nr, 1000);
        snapshot.delete(tx, vt)?;
        tree.delete(tx, vt)?;
        assert_eq!(bm.nr_used(), 0);
        Ok(())
    }

    #[test]
    fn an_array_changes_its_length() -> Result {
        let bm = SmallBm::new(20)?;
        let tx = &mut SmallTx(&bm);
        let vt = &mut Plain::new();
        let mut array = Array::new(tx, vt, 1000, &mut |i| Ok(U64::new(u64::from(i))))?;
        array.set(tx, vt, 999, U64::new(7))?;
        array.resize(tx, vt, 1000, 2000, U64::new(5))?;
        assert_eq!(array.get(&bm, 508)?, Some(U64::new(508)));
        assert_eq!(array.get(&bm, 999)?, Some(U64::new(7)));
        assert_eq!(array.get(&bm, 1999)?, Some(U64::new(5)));
        array.resize(tx, vt, 2000, 10, U64::new(5))?;
        assert_eq!(array.get(&bm, 10)?, None);
        array.delete(tx, vt)?;
        assert_eq!(bm.nr_used(), 0);
        Ok(())
    }

    #[test]
    fn bits_are_set_and_cleared() -> Result {
        let bm = SmallBm::new(20)?;
        let tx = &mut SmallTx(&bm);
        let mut set = Bitset::new(tx, 200, &mut |i| Ok(i % 2 == 0))?;
        set.set(tx, 3)?;
        set.clear(tx, 198)?;
        set.resize(tx, 300, true)?;
        assert_eq!(set.test(&bm, 3), Ok(true));
        assert_eq!(set.test(&bm, 5), Ok(false));
        assert_eq!(set.test(&bm, 198), Ok(false));
        assert_eq!(set.test(&bm, 200), Ok(true));
        assert_eq!(set.test(&bm, 300), Err(Error::NoData));
        set.delete(tx)?;
        assert_eq!(bm.nr_used(), 0);
        Ok(())
    }
}
