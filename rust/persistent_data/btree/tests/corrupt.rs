// SPDX-License-Identifier: GPL-2.0

//! Nodes that are wrong must give errors, and never a panic or an endless loop.

use proptest::prelude::*;
use zerocopy::little_endian::U64;

use super::{
    cases,
    counting::Fat,
    CountingTx,
    TestValue, //
};
use crate::{
    block::{
        checksum,
        BlockData,
        BlockNr, //
    },
    btree::{
        Plain,
        Tree,
        MAX_DEPTH,
        VALIDATOR, //
    },
    error::Corruption,
    memory::MemoryBm,
    transaction::Transaction,
    Error,
    Result, //
};

const INTERNAL: u32 = 1;
const LEAF: u32 = 2;

/// What a node's header says, and what follows.
#[derive(Clone)]
struct Craft {
    flags: u32,
    block: BlockNr,
    max: u32,
    value_size: u32,
    nr: u32,
    entries: Vec<(u64, u64)>,
}

impl Craft {
    fn new(block: BlockNr, flags: u32, entries: &[(u64, u64)]) -> Self {
        Self {
            flags,
            block,
            max: 252,
            value_size: 8,
            nr: entries.len() as u32,
            entries: entries.to_vec(),
        }
    }

    fn data(&self) -> BlockData {
        let mut data = [0; 4096];
        data[4..8].copy_from_slice(&self.flags.to_le_bytes());
        data[8..16].copy_from_slice(&self.block.to_le_bytes());
        data[16..20].copy_from_slice(&self.nr.to_le_bytes());
        data[20..24].copy_from_slice(&self.max.to_le_bytes());
        data[24..28].copy_from_slice(&self.value_size.to_le_bytes());
        for (i, (key, value)) in self.entries.iter().enumerate() {
            data[32 + 8 * i..][..8].copy_from_slice(&key.to_le_bytes());
            let values = 32 + 8 * self.max as usize;
            data[values + self.value_size as usize * i..][..8]
                .copy_from_slice(&value.to_le_bytes());
        }
        seal(&mut data);
        data
    }

    fn put(&self, bm: &MemoryBm) {
        bm.tamper(self.block, |data| *data = self.data());
    }

    fn check(&self) -> Result {
        (VALIDATOR.check)(&self.data(), self.block)
    }
}

fn seal(data: &mut BlockData) {
    let sum = checksum(data, 121107);
    data[..4].copy_from_slice(&sum.to_le_bytes());
}

fn corrupt(block: BlockNr, what: Corruption) -> Result {
    Err(Error::Corrupt(block, what))
}

#[test]
fn the_validator_checks_all_of_a_node() {
    let good = Craft::new(5, INTERNAL, &[(1, 10), (2, 20), (7, 70)]);
    assert_eq!(good.check(), Ok(()));
    assert_eq!(Craft::new(5, LEAF, &[]).check(), Ok(()));

    let bad = |f: &dyn Fn(&mut Craft)| {
        let mut craft = good.clone();
        f(&mut craft);
        craft.check()
    };
    assert_eq!(bad(&|c| c.flags = 0), corrupt(5, Corruption::NodeFlags));
    assert_eq!(bad(&|c| c.flags = 3), corrupt(5, Corruption::NodeFlags));
    assert_eq!(bad(&|c| c.flags = 6), corrupt(5, Corruption::NodeFlags));
    assert_eq!(
        bad(&|c| c.value_size = 0),
        corrupt(5, Corruption::ValueSize)
    );
    assert_eq!(
        bad(&|c| c.value_size = 4),
        corrupt(5, Corruption::ValueSize)
    );
    assert_eq!(bad(&|c| c.max = 255), corrupt(5, Corruption::ValueSize));
    assert_eq!(bad(&|c| c.nr = 253), corrupt(5, Corruption::TooManyEntries));
    assert_eq!(bad(&|c| c.nr = 0), corrupt(5, Corruption::EmptyNode));
    assert_eq!(bad(&|c| c.nr = 4), corrupt(5, Corruption::KeyOrder));
    assert_eq!(
        bad(&|c| c.entries[1].0 = 1),
        corrupt(5, Corruption::KeyOrder)
    );
    assert_eq!(
        bad(&|c| c.entries[1].0 = 8),
        corrupt(5, Corruption::KeyOrder)
    );

    let mut leaf = Craft::new(5, LEAF, &[]);
    leaf.value_size = u32::MAX;
    assert_eq!(leaf.check(), corrupt(5, Corruption::ValueSize));
    leaf.value_size = 600;
    leaf.max = 7;
    assert_eq!(leaf.check(), corrupt(5, Corruption::ValueSize));

    let found = (VALIDATOR.check)(&good.data(), 6);
    assert_eq!(found, Err(Error::WrongLocation { block: 6, found: 5 }));
    let mut data = good.data();
    data[4095] ^= 1;
    assert!(matches!(
        (VALIDATOR.check)(&data, 5),
        Err(Error::Checksum { block: 5, .. })
    ));
    let mut data = good.data();
    data[..16].fill(0);
    (VALIDATOR.prepare)(&mut data, 5);
    assert_ne!(data, good.data());
    data[4..8].copy_from_slice(&INTERNAL.to_le_bytes());
    (VALIDATOR.prepare)(&mut data, 5);
    assert_eq!(data, good.data());
}

/// Everything that a tree can do, each on a device of its own. Returns all errors.
fn do_everything<V: TestValue>(
    bm: &MemoryBm,
    tx: &CountingTx<'_>,
    root: BlockNr,
    key: u64,
) -> Vec<Error> {
    let mut errors = Vec::new();
    let mut note = |result: Result| errors.extend(result.err());
    let tree = Tree::<V, 1>::from_root(root);

    note(tree.lookup(bm, &[key]).map(drop));
    note(tree.lookup_next(bm, &[key]).map(drop));
    note(tree.lowest_key(bm).map(drop));
    note(tree.highest_key(bm).map(drop));
    note(tree.walk(bm, &mut |_, _| Ok(())));
    note(tree.cursor(bm, true).and_then(|mut c| c.skip(u64::MAX)));
    note(tree.visit(bm, &mut |_, _| true, &mut |_, _, _| Ok(())));
    for other in [root + 1, root.saturating_sub(1)] {
        let other = Tree::from_root(other);
        let same = |a: &V, b: &V| a.id() == b.id();
        note(tree.diff(&other, bm, same, &mut |_, _, _| Ok(())));
        note(other.merge(&tree, bm, &mut |_, _, _| Ok(())));
    }

    let mut change = |f: &dyn Fn(&mut CountingTx<'_>, &mut Tree<V, 1>) -> Result| {
        let bm = bm.crash();
        note(f(&mut tx.reopened(&bm), &mut { tree }));
    };
    let vt = || Plain::<V>::new();
    change(&|tx, tree| tree.insert(tx, &mut vt(), &[key], V::new(1)).map(drop));
    change(&|tx, tree| {
        for i in 0..300 {
            tree.insert(tx, &mut vt(), &[key + i], V::new(1))?;
        }
        Ok(())
    });
    change(&|tx, tree| tree.remove(tx, &mut vt(), &[key]));
    change(&|tx, tree| {
        // Entries that are there, so that nodes are rebalanced.
        for _ in 0..300 {
            match tree.lookup_next(tx.bm(), &[key])? {
                Some((found, _)) => tree.remove(tx, &mut vt(), &[found])?,
                None => break,
            }
        }
        Ok(())
    });
    change(&|tx, tree| tree.remove_range(tx, &mut vt(), key, key + 1500).map(drop));
    change(&|tx, tree| tree.remove_range(tx, &mut vt(), 0, u64::MAX).map(drop));
    change(&|tx, tree| tree.update(tx, &mut vt(), key, |_, _, _| Ok(())));
    change(&|tx, tree| tree.delete(tx, &mut vt()));
    errors
}

/// Goes through all of a tree by all means.
fn go_through(bm: &MemoryBm, root: BlockNr) -> [Result; 3] {
    let tree = Tree::<U64, 1>::from_root(root);
    Craft::new(3999, LEAF, &[]).put(bm);
    let empty = Tree::from_root(3999);
    let same = |a: &U64, b: &U64| a == b;
    [
        tree.diff(&empty, bm, same, &mut |_, _, _| Ok(())),
        empty.merge(&tree, bm, &mut |_, _, _| Ok(())),
        tree.visit(bm, &mut |_, _| true, &mut |_, _, _| Ok(())),
    ]
}

/// A tree of `n` entries with even keys.
fn grown<'b, V: TestValue>(bm: &'b MemoryBm, n: u64) -> (CountingTx<'b>, Tree<V, 1>) {
    let mut tx = CountingTx::new(bm);
    let mut tree = Tree::empty(&mut tx).unwrap();
    for i in 0..n {
        tree.insert(&mut tx, &mut Plain::new(), &[2 * i], V::new(i))
            .unwrap();
    }
    tx.commit();
    (tx, tree)
}

fn flip_bits<V: TestValue>(n: u64) {
    let bm = MemoryBm::new(4000);
    let (tx, tree) = grown::<V>(&bm, n);
    let blocks: Vec<BlockNr> = tx.counts().keys().copied().collect();
    // Most of what matters is at the start of a block, and near the root.
    let offset = prop_oneof![4 => 4..28usize, 2 => 32..64usize, 4 => 4..4096usize];
    let byte = prop_oneof![Just(0u8), Just(1), Just(2), Just(255), any::<u8>()];
    let flips = prop::collection::vec((any::<prop::sample::Index>(), offset, byte), 1..4);

    proptest!(cases(150), |(flips in flips, key in 0..2 * n, seals: bool)| {
        let bm = bm.crash();
        for (index, offset, byte) in flips {
            bm.tamper(*index.get(&blocks), |data| {
                data[offset] = byte;
                if seals {
                    seal(data);
                }
            });
        }
        for e in do_everything::<V>(&bm, &tx, tree.root(), key) {
            prop_assert_ne!(e, Error::NoMemory);
        }
    });
}

#[test]
fn flipped_bits_of_small_values() {
    flip_bits::<U64>(2000);
}

#[test]
fn flipped_bits_of_large_values() {
    flip_bits::<Fat>(1000);
}

#[test]
fn a_block_that_is_named_in_place_of_another() {
    let bm = MemoryBm::new(4000);
    let n = 2000;
    let (tx, tree) = grown::<U64>(&bm, n);
    let blocks: Vec<BlockNr> = tx.counts().keys().copied().collect();
    let victim = any::<prop::sample::Index>();
    proptest!(cases(100), |(from in victim, slot in 0..20usize, key in 0..2 * n)| {
        let bm = bm.crash();
        let child = from.get(&blocks);
        bm.tamper(tree.root(), |data| {
            data[32 + 8 * 252 + 8 * slot..][..8].copy_from_slice(&child.to_le_bytes());
            seal(data);
        });
        do_everything::<U64>(&bm, &tx, tree.root(), key);
    });
}

#[test]
fn another_value_size_is_told() {
    let bm = MemoryBm::new(4000);
    let (tx, tree) = grown::<Fat>(&bm, 5);
    let other = Tree::<U64, 1>::from_root(tree.root());
    let wanted = Error::Corrupt(tree.root(), Corruption::ValueSize);
    assert_eq!(other.lookup(&bm, &[1]), Err(wanted));
    assert_eq!(
        other.delete(&mut tx.reopened(&bm), &mut Plain::new()),
        Err(wanted)
    );
    let mut other = other;
    let inserted = other.insert(&mut tx.reopened(&bm), &mut Plain::new(), &[1], U64::new(1));
    assert_eq!(inserted, Err(wanted));
}

#[test]
fn loops_end() {
    let bm = MemoryBm::new(4000);
    let tx = CountingTx::new(&bm);
    for (first, second) in [(1, 1), (2, 1)] {
        Craft::new(1, INTERNAL, &[(0, first), (100, first)]).put(&bm);
        Craft::new(2, INTERNAL, &[(0, second), (100, second)]).put(&bm);
        for count in [1, 2, 3] {
            let mut tx = tx.reopened(&bm);
            (0..count).for_each(|_| tx.inc(1..3).unwrap());
            let tree = Tree::<U64, 1>::from_root(1);
            let deep = Error::Corrupt(1, Corruption::TooDeep);
            assert_eq!(tree.lookup(&bm, &[5]), Err(deep));
            assert_eq!(tree.lookup_next(&bm, &[5]), Err(deep));
            assert_eq!(tree.highest_key(&bm), Err(deep));
            assert_eq!(go_through(&bm, 1), [Err(deep); 3]);
            let errors = do_everything::<U64>(&bm, &tx, 1, 5);
            assert!(errors.len() >= 10, "only {errors:?}");
        }
    }
}

/// Each node refers to the next one many times, so the number of ways down is astronomic.
#[test]
fn a_tower_of_multiples_ends() {
    let bm = MemoryBm::new(4000);
    let mut tx = CountingTx::new(&bm);
    let leaf = MAX_DEPTH as u64;
    for block in 1..leaf {
        let entries: Vec<_> = (0..250).map(|i| (i, block + 1)).collect();
        Craft::new(block, INTERNAL, &entries).put(&bm);
    }
    let entries: Vec<_> = (0..250).map(|i| (i, i)).collect();
    Craft::new(leaf, LEAF, &entries).put(&bm);
    tx.inc(1..leaf + 1).unwrap();
    let tree = Tree::<U64, 1>::from_root(1);
    let order = corrupt(leaf, Corruption::KeyOrder);
    assert_eq!(tree.walk(&bm, &mut |_, _| Ok(())), order);
    assert_eq!(go_through(&bm, 1), [corrupt(2, Corruption::KeyOrder); 3]);
    let deleted = tree.delete(&mut tx.reopened(&bm), &mut Plain::new());
    assert_eq!(deleted, Err(Error::RefCount(leaf)));
    do_everything::<U64>(&bm, &tx, 1, 100);

    // Many owners are no better.
    (0..249).for_each(|_| tx.inc(2..leaf + 1).unwrap());
    do_everything::<U64>(&bm, &tx, 1, 100);
}

#[test]
fn leaves_beside_internal_nodes_are_told() {
    let bm = MemoryBm::new(4000);
    let mut tx = CountingTx::new(&bm);
    Craft::new(1, INTERNAL, &[(0, 2), (10, 3), (20, 4)]).put(&bm);
    Craft::new(2, INTERNAL, &[(0, 5)]).put(&bm);
    Craft::new(3, LEAF, &[(10, 1), (11, 1)]).put(&bm);
    Craft::new(4, LEAF, &[(20, 1)]).put(&bm);
    Craft::new(5, LEAF, &[(0, 1), (1, 1)]).put(&bm);
    tx.inc(1..6).unwrap();
    let mut tree = Tree::<U64, 1>::from_root(1);
    let removed = tree.remove(&mut tx.reopened(&bm), &mut Plain::new(), &[11]);
    assert!(matches!(
        removed,
        Err(Error::Corrupt(_, Corruption::Unbalanced))
    ));
    assert_eq!(go_through(&bm, 1), [corrupt(3, Corruption::Unbalanced); 3]);
    Craft::new(3, INTERNAL, &[(10, 6)]).put(&bm);
    Craft::new(6, INTERNAL, &[(10, 7)]).put(&bm);
    assert_eq!(go_through(&bm, 1), [corrupt(6, Corruption::Unbalanced); 3]);
    Craft::new(6, LEAF, &[]).put(&bm);
    assert_eq!(go_through(&bm, 1), [corrupt(6, Corruption::EmptyNode); 3]);
    Craft::new(3, LEAF, &[(10, 1), (11, 1)]).put(&bm);
    for key in [0, 1, 10, 11, 20] {
        do_everything::<U64>(&bm, &tx, 1, key);
    }
}

#[test]
fn siblings_of_other_sizes_are_told() {
    let bm = MemoryBm::new(4000);
    let mut tx = CountingTx::new(&bm);
    Craft::new(1, INTERNAL, &[(0, 2), (10, 3)]).put(&bm);
    Craft::new(2, LEAF, &[(0, 1), (1, 1)]).put(&bm);
    let mut other = Craft::new(3, LEAF, &[(10, 1), (11, 1)]);
    other.max = 249;
    other.put(&bm);
    tx.inc(1..4).unwrap();
    let mut tree = Tree::<U64, 1>::from_root(1);
    let removed = tree.remove(&mut tx.reopened(&bm), &mut Plain::new(), &[11]);
    assert!(matches!(
        removed,
        Err(Error::Corrupt(_, Corruption::ValueSize))
    ));
}

#[test]
fn nodes_without_space_are_told() {
    for max in 0..4u32 {
        let bm = MemoryBm::new(4000);
        let mut tx = CountingTx::new(&bm);
        let mut root = Craft::new(1, LEAF, &[]);
        root.max = max;
        root.put(&bm);
        tx.inc(1..2).unwrap();
        for key in [0, 5] {
            do_everything::<U64>(&bm, &tx, 1, key);
        }
        let mut root = Craft::new(1, INTERNAL, &[(3, 2)]);
        root.max = max.max(1);
        root.put(&bm);
        let mut leaf = Craft::new(2, LEAF, &[(3, 4)]);
        leaf.max = max.max(1);
        leaf.put(&bm);
        tx.inc(2..3).unwrap();
        for key in [0, 3, 5] {
            do_everything::<U64>(&bm, &tx, 1, key);
        }
    }
}

#[test]
fn a_key_out_of_bounds_is_not_searched_for_ever() {
    let bm = MemoryBm::new(4000);
    let mut tx = CountingTx::new(&bm);
    // The second leaf begins below where the first one ends.
    Craft::new(1, INTERNAL, &[(0, 2), (10, 3)]).put(&bm);
    Craft::new(2, LEAF, &[(0, 1), (5, 1)]).put(&bm);
    Craft::new(3, LEAF, &[(1, 1), (11, 1)]).put(&bm);
    tx.inc(1..4).unwrap();
    let mut tree = Tree::<U64, 1>::from_root(1);
    let order = Error::Corrupt(3, Corruption::KeyOrder);
    assert_eq!(tree.lookup_next(&bm, &[6]), Err(order));
    assert_eq!(tree.walk(&bm, &mut |_, _| Ok(())), Err(order));
    assert_eq!(go_through(&bm, 1), [corrupt(3, Corruption::KeyOrder); 3]);
    Craft::new(2, LEAF, &[(0, 1), (10, 1)]).put(&bm);
    assert_eq!(go_through(&bm, 1), [corrupt(2, Corruption::KeyOrder); 3]);
    Craft::new(2, LEAF, &[(0, 1), (5, 1)]).put(&bm);
    // What is found in the leaf where it should be is good enough here.
    let mut found = Vec::new();
    let scanned = tree.scan(&bm, &[1], 20, |key, _| {
        found.push(key);
        true
    });
    assert_eq!((scanned, found), (Ok(()), vec![5, 11]));
    let removed = tree.remove_range(&mut tx.reopened(&bm), &mut Plain::new(), 6, 20);
    assert_eq!(removed, Ok(1));
}
