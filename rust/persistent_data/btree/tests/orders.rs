// SPDX-License-Identifier: GPL-2.0

//! Tens of thousands of entries in all orders, and how much space they take.

use std::collections::BTreeSet;

use zerocopy::little_endian::U64;

use super::{
    counting::{
        Fat,
        References, //
    },
    Counted,
    CountingTx,
    Owned,
    TestValue, //
};
use crate::{
    btree::Tree,
    memory::MemoryBm, //
};

const N: u64 = 30_000;

/// A pseudo-random permutation of `0..n`.
fn shuffled(n: u64) -> Vec<u64> {
    let mut keys: Vec<u64> = (0..n).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for i in (1..keys.len()).rev() {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        keys.swap(i, (state >> 33) as usize % (i + 1));
    }
    keys
}

struct Fixture<'b, V> {
    tx: CountingTx<'b>,
    owned: Owned,
    tree: Tree<V, 1>,
}

impl<'b, V: TestValue> Fixture<'b, V> {
    fn filled(bm: &'b MemoryBm, keys: impl IntoIterator<Item = u64>) -> Self {
        let mut tx = CountingTx::new(bm);
        let mut owned = Owned::default();
        let mut tree = Tree::empty(&mut tx).unwrap();
        for (i, key) in keys.into_iter().enumerate() {
            owned.add(key);
            let vt = &mut Counted::new(&mut owned);
            assert!(tree.insert(&mut tx, vt, &[key], V::new(key)).unwrap());
            if i % 1000 == 999 {
                tx.commit();
            }
        }
        Self { tx, owned, tree }
    }

    /// Checks shape, counts and content, and returns how full leaves are, in percent.
    fn occupancy(&self, keys: &BTreeSet<u64>) -> usize {
        let mut references = References::default();
        references.add::<V>(self.tx.bm, self.tree.root(), 1);
        references.check(&self.tx, &self.owned);
        assert_eq!(references.nr_entries, keys.len());
        let mut walked = Vec::new();
        let walk = &mut |[k]: &[u64; 1], v: &V| {
            assert_eq!(*k, v.id());
            walked.push(*k);
            Ok(())
        };
        self.tree.walk(self.tx.bm, walk).unwrap();
        assert!(walked.iter().eq(keys.iter()));
        references.nr_entries * 100 / references.nr_leaf_slots
    }

    fn remove(&mut self, key: u64) {
        let vt = &mut Counted::new(&mut self.owned);
        self.tree.remove(&mut self.tx, vt, &[key]).unwrap();
    }
}

fn insert_and_remove<V: TestValue>(
    n: u64,
    insert: impl IntoIterator<Item = u64>,
    remove: impl IntoIterator<Item = u64>,
    least_occupancy: usize,
) {
    let bm = MemoryBm::new(1 << 20);
    let mut fixture = Fixture::<V>::filled(&bm, insert);
    let mut keys: BTreeSet<u64> = (0..n).collect();
    let occupancy = fixture.occupancy(&keys);
    assert!(
        occupancy >= least_occupancy,
        "leaves are {occupancy} % full"
    );
    for key in 0..n {
        let found = fixture.tree.lookup(&bm, &[key]).unwrap();
        assert_eq!(found.map(|v| v.id()), Some(key));
    }

    for (i, key) in remove.into_iter().enumerate() {
        fixture.remove(key);
        keys.remove(&key);
        if (i as u64).is_multiple_of(n / 8) {
            fixture.tx.commit();
            fixture.occupancy(&keys);
        }
    }
    assert!(keys.is_empty());
    fixture.occupancy(&keys);
    // What is left is one empty leaf.
    assert_eq!(fixture.tx.counts().len(), 1);
}

#[test]
fn ascending() {
    insert_and_remove::<U64>(N, 0..N, 0..N, 95);
    insert_and_remove::<Fat>(6000, 0..6000, 0..6000, 49);
}

#[test]
fn ascending_from_the_end() {
    insert_and_remove::<U64>(N, 0..N, (0..N).rev(), 95);
    insert_and_remove::<Fat>(6000, 0..6000, (0..6000).rev(), 49);
}

#[test]
fn descending() {
    insert_and_remove::<U64>(N, (0..N).rev(), 0..N, 95);
    insert_and_remove::<Fat>(6000, (0..6000).rev(), (0..6000).rev(), 49);
}

#[test]
fn random() {
    let mut other = shuffled(N);
    other.reverse();
    insert_and_remove::<U64>(N, shuffled(N), other, 75);
    insert_and_remove::<Fat>(6000, shuffled(6000), 0..6000, 66);
}

#[test]
fn ranges() {
    for step in [1, 7, 251, 252, 1000, 12_345, N] {
        let bm = MemoryBm::new(1 << 20);
        let mut fixture = Fixture::<U64>::filled(&bm, 0..N);
        let mut keys: BTreeSet<u64> = (0..N).collect();
        // Every second range goes first, so that later ones have gaps beside them.
        for phase in [0, 1] {
            for begin in (phase * step..N).step_by(2 * step as usize) {
                let end = begin + step;
                let vt = &mut Counted::new(&mut fixture.owned);
                let removed = fixture
                    .tree
                    .remove_range(&mut fixture.tx, vt, begin, end)
                    .unwrap();
                let before = keys.len();
                keys.retain(|k| !(begin..end).contains(k));
                assert_eq!(removed, (before - keys.len()) as u64);
                if step > 200 {
                    fixture.occupancy(&keys);
                }
            }
            fixture.tx.commit();
            fixture.occupancy(&keys);
        }
        assert!(keys.is_empty());
    }
}

#[test]
fn range_leaves_a_shared_tree_alone() {
    use crate::transaction::Transaction;

    let bm = MemoryBm::new(1 << 20);
    let mut fixture = Fixture::<Fat>::filled(&bm, 0..6000);
    let snapshot = fixture.tree;
    fixture
        .tx
        .inc(snapshot.root()..snapshot.root() + 1)
        .unwrap();
    fixture.tx.commit();

    let before = fixture.tx.counts().len();
    let vt = &mut Counted::new(&mut fixture.owned);
    let removed = fixture.tree.remove_range(&mut fixture.tx, vt, 100, 5900);
    assert_eq!(removed, Ok(5800));
    // Only the nodes at the edges were copied.
    assert!(fixture.tx.counts().len() < before + 20);

    let mut references = References::default();
    references.add::<Fat>(&bm, fixture.tree.root(), 1);
    references.add::<Fat>(&bm, snapshot.root(), 1);
    references.check(&fixture.tx, &fixture.owned);
    for key in 0..6000 {
        assert!(snapshot.lookup(&bm, &[key]).unwrap().is_some());
        let is_left = fixture.tree.lookup(&bm, &[key]).unwrap().is_some();
        assert_eq!(is_left, !(100..5900).contains(&key));
    }
}
