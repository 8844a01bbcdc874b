// SPDX-License-Identifier: GPL-2.0

//! Trees that share nodes, against maps.

use std::collections::BTreeMap;

use proptest::prelude::*;
use zerocopy::little_endian::U64;

use super::{
    cases,
    counting::{
        Fat,
        References, //
    },
    diff,
    Counted,
    CountingTx,
    Owned,
    TestValue, //
};
use crate::{
    btree::Tree,
    memory::MemoryBm,
    transaction::Transaction,
    Error, //
};

/// One step; the number of a tree is taken modulo how many there are.
#[derive(Clone, Debug)]
enum Op {
    Insert(usize, u64, u64),
    /// Inserts so many entries from a key on, at a distance.
    InsertRun(usize, u64, u64, u64),
    /// Inserts entries from a key on, at these distances, together.
    InsertSorted(usize, u64, Vec<u64>),
    Remove(usize, u64),
    RemoveRange(usize, u64, u64),
    Snapshot(usize),
    Delete(usize),
    Commit,
    Look(usize, u64),
    Compare(usize, usize),
}

fn ops(keys: u64, run: u64) -> impl Strategy<Value = Vec<Op>> {
    let tree = 0..8usize;
    let op = prop_oneof![
        8 => (tree.clone(), 0..keys, 0..20u64).prop_map(|(t, k, v)| Op::Insert(t, k, v)),
        4 => (tree.clone(), 0..keys, 1..run, 1..4u64)
            .prop_map(|(t, k, n, d)| Op::InsertRun(t, k, n, d)),
        4 => (tree.clone(), 0..keys, distances(run))
            .prop_map(|(t, k, distances)| Op::InsertSorted(t, k, distances)),
        8 => (tree.clone(), 0..keys).prop_map(|(t, k)| Op::Remove(t, k)),
        3 => (tree.clone(), 0..keys, 0..keys / 4)
            .prop_map(|(t, k, n)| Op::RemoveRange(t, k, k + n)),
        1 => (tree.clone(), 0..keys).prop_map(|(t, k)| Op::RemoveRange(t, k, u64::MAX)),
        2 => tree.clone().prop_map(Op::Snapshot),
        1 => tree.clone().prop_map(Op::Delete),
        2 => Just(Op::Commit),
        4 => (tree.clone(), 0..keys).prop_map(|(t, k)| Op::Look(t, k)),
        4 => (tree.clone(), tree).prop_map(|(a, b)| Op::Compare(a, b)),
    ];
    prop::collection::vec(op, 1..80)
}

fn distances(n: u64) -> impl Strategy<Value = Vec<u64>> {
    let distance = prop_oneof![4 => Just(1u64), 1 => 1..5u64, 1 => 1..200u64];
    prop::collection::vec(distance, 1..n as usize)
}

struct Forest<'b, V> {
    tx: CountingTx<'b>,
    owned: Owned,
    trees: Vec<(Tree<V, 1>, BTreeMap<u64, u64>)>,
}

impl<'b, V: TestValue> Forest<'b, V> {
    fn new(bm: &'b MemoryBm) -> Self {
        let mut tx = CountingTx::new(bm);
        let tree = Tree::empty(&mut tx).unwrap();
        Self {
            tx,
            owned: Owned::default(),
            trees: vec![(tree, BTreeMap::new())],
        }
    }

    fn insert(&mut self, tree: usize, key: u64, id: u64) {
        let (tree, model) = &mut self.trees[tree];
        let old = model.insert(key, id);
        if old != Some(id) {
            self.owned.add(id);
        }
        let vt = &mut Counted::new(&mut self.owned);
        let is_new = tree.insert(&mut self.tx, vt, &[key], V::new(id)).unwrap();
        assert_eq!(is_new, old.is_none());
    }

    fn apply(&mut self, op: &Op) {
        let nr = self.trees.len();
        match *op {
            Op::Insert(t, key, id) => self.insert(t % nr, key, id),
            Op::InsertRun(t, key, n, d) => {
                (0..n).for_each(|i| self.insert(t % nr, key + i * d, key + i));
            }
            Op::InsertSorted(t, key, ref distances) => {
                let (tree, model) = &mut self.trees[t % nr];
                let mut key = key;
                let mut entries = Vec::new();
                let mut nr_new = 0;
                for distance in distances {
                    key += distance;
                    let id = key % 20;
                    entries.push((key, id));
                    let old = model.insert(key, id);
                    nr_new += u64::from(old.is_none());
                    if old != Some(id) {
                        self.owned.add(id);
                    }
                }
                let vt = &mut Counted::new(&mut self.owned);
                let entries = entries.iter().map(|&(key, id)| (key, V::new(id)));
                assert_eq!(tree.insert_sorted(&mut self.tx, vt, entries), Ok(nr_new));
            }
            Op::Remove(t, key) => {
                let (tree, model) = &mut self.trees[t % nr];
                let vt = &mut Counted::new(&mut self.owned);
                let result = tree.remove(&mut self.tx, vt, &[key]);
                match model.remove(&key) {
                    Some(_) => assert_eq!(result, Ok(())),
                    None => assert_eq!(result, Err(Error::NoData)),
                }
            }
            Op::RemoveRange(t, begin, end) => {
                let (tree, model) = &mut self.trees[t % nr];
                let vt = &mut Counted::new(&mut self.owned);
                let removed = tree.remove_range(&mut self.tx, vt, begin, end).unwrap();
                let before = model.len();
                model.retain(|k, _| !(begin..end).contains(k));
                assert_eq!(removed, (before - model.len()) as u64);
            }
            Op::Snapshot(t) => {
                let (tree, model) = self.trees[t % nr].clone();
                self.tx.inc(tree.root()..tree.root() + 1).unwrap();
                self.trees.push((tree, model));
            }
            Op::Delete(t) => {
                if nr > 1 {
                    let (tree, _) = self.trees.swap_remove(t % nr);
                    let vt = &mut Counted::new(&mut self.owned);
                    tree.delete(&mut self.tx, vt).unwrap();
                }
            }
            Op::Commit => self.tx.commit(),
            Op::Look(t, key) => {
                let (tree, model) = &self.trees[t % nr];
                let bm = self.tx.bm;
                let found = tree.lookup(bm, &[key]).unwrap();
                assert_eq!(found.map(|v| v.id()), model.get(&key).copied());
                let next = tree.lookup_next(bm, &[key]).unwrap();
                let wanted = model.range(key..).next().map(|(k, v)| (*k, *v));
                assert_eq!(next.map(|(k, v)| (k, v.id())), wanted);
                let lowest = tree.lowest_key(bm).unwrap();
                assert_eq!(lowest.map(|[k]| k), model.keys().next().copied());
                let highest = tree.highest_key(bm).unwrap();
                assert_eq!(highest.map(|[k]| k), model.keys().next_back().copied());
            }
            Op::Compare(a, b) => {
                self.tx.commit();
                let (left, right) = (&self.trees[a % nr], &self.trees[b % nr]);
                diff::compare(self.tx.bm, left, right);
                diff::visit(self.tx.bm, left, right);
            }
        }
    }

    /// Compares everything, and leaves the reference counts at that.
    fn check(&self) {
        let mut references = References::default();
        for (tree, model) in &self.trees {
            references.add::<V>(self.tx.bm, tree.root(), 1);

            let mut walked = Vec::new();
            tree.walk(self.tx.bm, &mut |[k], v| {
                walked.push((*k, v.id()));
                Ok(())
            })
            .unwrap();
            assert!(walked
                .iter()
                .copied()
                .eq(model.iter().map(|(k, v)| (*k, *v))));

            let mut cursor = tree.cursor(self.tx.bm, true).unwrap();
            for (i, entry) in walked.iter().enumerate().step_by(3) {
                let (k, v) = cursor.get().unwrap();
                assert_eq!((k, v.id()), *entry);
                assert!(i < walked.len());
                cursor.skip(3).unwrap();
            }
            assert!(cursor.get().is_none());
        }
        references.check(&self.tx, &self.owned);
    }
}

fn run<V: TestValue>(ops: &[Op]) {
    let bm = MemoryBm::new(1 << 20);
    let mut forest = Forest::<V>::new(&bm);
    for op in ops {
        forest.apply(op);
        forest.check();
    }
    while forest.trees.len() > 1 {
        forest.apply(&Op::Delete(0));
    }
    forest.check();
    let vt = &mut Counted::new(&mut forest.owned);
    let (tree, _) = forest.trees.remove(0);
    tree.delete(&mut forest.tx, vt).unwrap();
    assert!(forest.tx.counts().is_empty());
    assert!(forest.owned.0.is_empty());
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn small_values(ops in ops(4000, 900)) {
        run::<U64>(&ops);
    }

    #[test]
    fn large_values(ops in ops(2500, 600)) {
        run::<Fat>(&ops);
    }
}
