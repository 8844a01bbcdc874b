// SPDX-License-Identifier: GPL-2.0

//! What two trees differ in, against maps.

use std::collections::{
    BTreeMap,
    BTreeSet, //
};

use super::{
    references,
    CountingTx,
    Fat,
    TestValue, //
};
use crate::{
    block::BlockNr,
    block_manager::BlockManager,
    btree::{
        Plain,
        Tree,
        VALIDATOR, //
    },
    memory::MemoryBm,
    transaction::Transaction,
    Result, //
};

type Map = BTreeMap<u64, u64>;

/// What one key has in two trees.
type Entry = (u64, Option<u64>, Option<u64>);

/// What one of the maps has, or both.
fn all(left: &Map, right: &Map) -> Vec<Entry> {
    let keys: BTreeSet<u64> = left.keys().chain(right.keys()).copied().collect();
    keys.into_iter()
        .map(|key| (key, left.get(&key).copied(), right.get(&key).copied()))
        .collect()
}

fn collected<V: TestValue>(
    f: impl FnOnce(&mut dyn FnMut(u64, Option<V>, Option<V>) -> Result) -> Result,
) -> Vec<Entry> {
    let mut entries = Vec::new();
    f(&mut |key, l, r| {
        entries.push((key, l.map(|v| v.id()), r.map(|v| v.id())));
        Ok(())
    })
    .unwrap();
    entries
}

fn blocks<V: TestValue>(bm: &MemoryBm, root: BlockNr) -> BTreeSet<BlockNr> {
    references::<V>(bm, [root].into_iter())
        .blocks
        .into_keys()
        .collect()
}

/// The number of nodes on the way to a leaf.
fn depth<V: TestValue>(bm: &MemoryBm, tree: &Tree<V, 1>) -> u64 {
    bm.drop_cache();
    let before = bm.counts().reads;
    tree.lookup(bm, &[0]).unwrap();
    bm.counts().reads - before
}

/// Compares two trees, all of whose blocks are clean, by all means.
pub(super) fn compare<V: TestValue>(
    bm: &MemoryBm,
    (left, left_map): &(Tree<V, 1>, Map),
    (right, right_map): &(Tree<V, 1>, Map),
) {
    let wanted = all(left_map, right_map);
    let left_blocks = blocks::<V>(bm, left.root());
    let right_blocks = blocks::<V>(bm, right.root());
    let paths = depth(bm, left) + depth(bm, right);

    bm.drop_cache();
    let before = bm.counts().reads;
    let found = collected::<V>(|f| left.merge(right, bm, f));
    assert_eq!(found, wanted);
    let reads = bm.counts().reads - before;
    assert!(reads <= left_blocks.union(&right_blocks).count() as u64);

    let differ = |(_, l, r): &Entry| l != r;
    let wanted: Vec<Entry> = wanted.into_iter().filter(differ).collect();
    bm.drop_cache();
    let before = bm.counts().reads;
    let same = |a: &V, b: &V| a.id() == b.id();
    let found = collected::<V>(|f| left.diff(right, bm, same, f));
    assert_eq!(found, wanted);

    // What both have is read only on the way down to the lowest keys, to find out the heights, and here and there
    // beside what differs.
    let reads = bm.counts().reads - before;
    let own = left_blocks.symmetric_difference(&right_blocks).count() as u64;
    assert!(reads <= own + paths, "{reads} > {own} + {paths}");
    if left.root() == right.root() {
        assert_eq!(reads, 0);
    }
}

#[test]
fn leaves_that_trees_of_two_heights_share_are_not_read() {
    let bm = MemoryBm::new(4000);
    let mut tx = CountingTx::new(&bm);
    let mut tall = Tree::<Fat, 1>::empty(&mut tx).unwrap();
    let insert = |tx: &mut CountingTx<'_>, tree: &mut Tree<Fat, 1>, key| {
        let inserted = tree.insert(tx, &mut Plain::new(), &[key], Fat::new(key));
        assert_eq!(inserted, Ok(true));
    };
    (2000..2700).for_each(|key| insert(&mut tx, &mut tall, key));
    let low = tall;
    tx.inc(low.root()..low.root() + 1).unwrap();
    tx.commit();
    // Its leaves become children of several nodes.
    (0..1300).for_each(|key| insert(&mut tx, &mut tall, key));
    tx.commit();
    assert_eq!((depth(&bm, &tall), depth(&bm, &low)), (3, 2));

    let common: Vec<_> = blocks::<Fat>(&bm, tall.root())
        .intersection(&blocks::<Fat>(&bm, low.root()))
        .copied()
        .collect();
    assert!(common.len() > 100);
    for (one, other) in [(tall, low), (low, tall)] {
        bm.drop_cache();
        let same = |a: &Fat, b: &Fat| a.id() == b.id();
        let found = collected::<Fat>(|f| one.diff(&other, &bm, same, f));
        assert_eq!(found.len(), 1300);
        let is_read = |block: &&BlockNr| bm.try_read(**block, &VALIDATOR).is_ok();
        assert_eq!(common.iter().find(is_read), None);
    }
}

/// Visits two trees, the second one without what the first one has, and all nodes of both without their leaves.
pub(super) fn visit<V: TestValue>(
    bm: &MemoryBm,
    (left, left_map): &(Tree<V, 1>, Map),
    (right, right_map): &(Tree<V, 1>, Map),
) {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for tree in [left, right] {
        bm.drop_cache();
        let before = bm.counts().reads;
        let (nr_seen, depth) = (seen.len() as u64, depth::<V>(bm, tree));
        let mut entries = Map::new();
        tree.visit(bm, &mut |block, _| seen.insert(block), &mut |_, k, v| {
            assert!(entries.last_key_value().is_none_or(|(last, _)| *last < k));
            entries.insert(k, v.id());
            Ok(())
        })
        .unwrap();
        let reads = bm.counts().reads - before;
        assert!(reads <= seen.len() as u64 - nr_seen + 2 * depth);
        found.push(entries);
    }
    assert_eq!(&found[0], left_map);
    let both = blocks::<V>(bm, left.root());
    let both: BTreeSet<_> = both
        .union(&blocks::<V>(bm, right.root()))
        .copied()
        .collect();
    assert_eq!(seen, both);
    let mut heights = BTreeMap::new();
    right
        .visit(
            bm,
            &mut |b, height| {
                assert!(heights.insert(b, height).is_none());
                height > 0
            },
            &mut |_, _, _| panic!("a leaf was not wanted"),
        )
        .unwrap();
    assert!(heights.into_keys().eq(blocks::<V>(bm, right.root())));
    // What the second tree alone has is all of it but what is in leaves that the first one has, too.
    for (key, id) in right_map {
        match found[1].get(key) {
            Some(other) => assert_eq!(other, id),
            None => assert_eq!(left_map.get(key), Some(id)),
        }
    }
}
