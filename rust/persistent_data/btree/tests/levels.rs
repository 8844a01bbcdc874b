// SPDX-License-Identifier: GPL-2.0

//! Trees of more than one level.

use std::collections::BTreeMap;

use proptest::prelude::*;
use zerocopy::little_endian::U64;

use super::{
    cases,
    counting::References,
    Counted,
    CountingTx,
    Owned,
    TestValue, //
};
use crate::{
    btree::{
        Subtree,
        Tree,
        ValueType, //
    },
    memory::MemoryBm,
    transaction::Transaction,
    Error, //
};

type Model = BTreeMap<[u64; 3], u64>;

fn check(tx: &CountingTx<'_>, owned: &Owned, trees: &[(Tree<U64, 3>, Model)]) {
    let mut references = References::default();
    for (tree, model) in trees {
        references.add::<U64>(tx.bm, tree.root(), 3);
        let mut walked = Vec::new();
        tree.walk(tx.bm, &mut |k, v| {
            walked.push((*k, v.get()));
            Ok(())
        })
        .unwrap();
        assert!(walked
            .iter()
            .copied()
            .eq(model.iter().map(|(k, v)| (*k, *v))));
    }
    references.check(tx, owned);
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn three_levels(
        ops in prop::collection::vec((0..10u8, 0..4usize, 0..3u64, 0..400u64, 0..300u64), 1..300)
    ) {
        let bm = MemoryBm::new(1 << 20);
        let mut tx = CountingTx::new(&bm);
        let mut owned = Owned::default();
        let tree = Tree::<U64, 3>::empty(&mut tx).unwrap();
        let mut trees = vec![(tree, Model::new())];

        for (i, &(kind, t, a, b, c)) in ops.iter().enumerate() {
            let nr = trees.len();
            let (tree, model) = &mut trees[t % nr];
            let keys = [a, b, c];
            match kind {
                0..5 => {
                    let id = a + b + c;
                    let old = model.insert(keys, id);
                    if old != Some(id) {
                        owned.add(id);
                    }
                    let vt = &mut Counted::new(&mut owned);
                    let is_new = tree.insert(&mut tx, vt, &keys, U64::new(id)).unwrap();
                    prop_assert_eq!(is_new, old.is_none());
                }
                5..7 => {
                    // An entry that is there, if there is one after these keys.
                    let keys = model.range(keys..).next().map_or(keys, |(k, _)| *k);
                    let vt = &mut Counted::new(&mut owned);
                    let result = tree.remove(&mut tx, vt, &keys);
                    match model.remove(&keys) {
                        Some(_) => prop_assert_eq!(result, Ok(())),
                        None => prop_assert_eq!(result, Err(Error::NoData)),
                    }
                }
                7 => {
                    // The top level on its own: one key takes all below it away.
                    let mut top = Tree::<U64, 1>::from_root(tree.root());
                    let mut vt = Counted::<U64>::new(&mut owned);
                    let result = top.remove(&mut tx, &mut Subtree::<_, 2>(&mut vt), &[a]);
                    prop_assert!(matches!(result, Ok(()) | Err(Error::NoData)));
                    *tree = Tree::from_root(top.root());
                    model.retain(|k, _| k[0] != a);
                }
                8 => {
                    let copy = (*tree, model.clone());
                    tx.inc(tree.root()..tree.root() + 1).unwrap();
                    if nr < 4 {
                        trees.push(copy);
                    } else {
                        let vt = &mut Counted::new(&mut owned);
                        trees.swap_remove(t % nr).0.delete(&mut tx, vt).unwrap();
                        trees.push(copy);
                    }
                }
                _ => {
                    tx.commit();
                    prop_assert_eq!(
                        tree.lookup(&bm, &keys).unwrap().map(|v| v.get()),
                        model.get(&keys).copied()
                    );
                    let end = [a, b, u64::MAX];
                    let next = model.range(keys..=end).next().map(|(k, v)| (k[2], *v));
                    prop_assert_eq!(
                        tree.lookup_next(&bm, &keys).unwrap().map(|(k, v)| (k, v.get())),
                        next
                    );
                }
            }
            if i % 10 == 0 {
                check(&tx, &owned, &trees);
            }
        }
        check(&tx, &owned, &trees);
        for (tree, _) in trees {
            tree.delete(&mut tx, &mut Counted::new(&mut owned)).unwrap();
        }
        prop_assert!(tx.counts().is_empty());
        prop_assert!(owned.0.is_empty());
    }
}

#[test]
fn an_empty_bottom_tree_stays() {
    let bm = MemoryBm::new(100);
    let mut tx = CountingTx::new(&bm);
    let mut owned = Owned::default();
    let mut tree = Tree::<U64, 2>::empty(&mut tx).unwrap();
    assert_eq!(tree.lowest_key(&bm), Ok(None));

    owned.add(7);
    owned.add(8);
    let vt = &mut Counted::new(&mut owned);
    tree.insert(&mut tx, vt, &[1, 2], U64::new(7)).unwrap();
    tree.insert(&mut tx, vt, &[3, 4], U64::new(8)).unwrap();
    assert_eq!(tree.lowest_key(&bm), Ok(Some([1, 2])));
    assert_eq!(tree.highest_key(&bm), Ok(Some([3, 4])));
    assert_eq!(tree.lookup_next(&bm, &[1, 3]).unwrap(), None);
    assert_eq!(tree.lookup(&bm, &[2, 2]).unwrap(), None);

    tree.remove(&mut tx, vt, &[1, 2]).unwrap();
    assert_eq!(tree.remove(&mut tx, vt, &[1, 2]), Err(Error::NoData));
    assert_eq!(tree.remove(&mut tx, vt, &[2, 2]), Err(Error::NoData));
    assert_eq!(tree.lowest_key(&bm), Ok(None));
    assert_eq!(tree.highest_key(&bm), Ok(Some([3, 4])));
    let top = Tree::<U64, 1>::from_root(tree.root());
    assert!(top.lookup(&bm, &[1]).unwrap().is_some());
}

#[test]
fn update_changes_in_place() {
    let bm = MemoryBm::new(100);
    let mut tx = CountingTx::new(&bm);
    let mut owned = Owned::default();
    let mut tree = Tree::<U64, 1>::empty(&mut tx).unwrap();
    owned.add(7);
    let vt = &mut Counted::new(&mut owned);
    tree.insert(&mut tx, vt, &[1], TestValue::new(7)).unwrap();
    tx.commit();
    let root = tree.root();

    let was = tree.update(&mut tx, vt, 1, |tx, vt, value| {
        let was = *value;
        vt.dec(tx, &[was])?;
        *value = U64::new(9);
        vt.inc(tx, &[*value])?;
        Ok(was.get())
    });
    assert_eq!(was, Ok(7));
    assert_ne!(tree.root(), root);
    assert_eq!(tree.lookup(&bm, &[1]), Ok(Some(U64::new(9))));
    let nothing = tree.update(&mut tx, vt, 0, |_, _, _| Ok(()));
    assert_eq!(nothing, Err(Error::NoData));
    assert_eq!(owned.0, BTreeMap::from([(9, 1)]));
}
