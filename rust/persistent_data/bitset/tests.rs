// SPDX-License-Identifier: GPL-2.0

//! Sets of bits against a model.

use proptest::prelude::*;
use zerocopy::little_endian::U64;

use super::Bitset;
use crate::{
    array::Array,
    btree::tests::{
        cases,
        CountingTx, //
    },
    memory::MemoryBm,
    transaction::Transaction,
    Error, //
};

fn check(tx: &mut CountingTx<'_>, set: &mut Bitset, model: &[bool]) {
    assert_eq!(set.len() as usize, model.len());
    for (i, &bit) in model.iter().enumerate() {
        assert_eq!(set.test(tx.bm, i as u32), Ok(bit));
    }
    assert_eq!(set.test(tx.bm, set.len()), Err(Error::NoData));
    set.flush(tx).unwrap();
    for step in [1, 5, 64, 100] {
        let mut cursor = set.cursor(tx.bm).unwrap();
        for &bit in model.iter().step_by(step) {
            assert_eq!(cursor.get(), Some(bit));
            cursor.skip(step as u32).unwrap();
        }
        assert_eq!(cursor.get(), None);
        assert_eq!(cursor.next(), Ok(()));
        assert_eq!(cursor.get(), None);
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn random(ops in prop::collection::vec((0..12u8, 0..70_000u32, any::<bool>()), 1..40)) {
        let bm = MemoryBm::new(1 << 16);
        let mut tx = CountingTx::new(&bm);
        let mut set = Bitset::empty(&mut tx).unwrap();
        let mut model = Vec::new();
        for (kind, index, value) in ops {
            match kind {
                0..3 => {
                    // Mostly small, so that words are filled in part.
                    let len = if kind == 0 { index } else { index % 300 };
                    set.resize(&mut tx, len, value).unwrap();
                    model.resize(len as usize, value);
                }
                3..10 => {
                    let index = match kind {
                        3 => index,
                        _ => index.checked_rem(model.len() as u32).unwrap_or(0),
                    };
                    let result = match value {
                        true => set.set(&mut tx, index),
                        false => set.clear(&mut tx, index),
                    };
                    match model.get_mut(index as usize) {
                        Some(bit) => {
                            prop_assert_eq!(result, Ok(()));
                            *bit = value;
                        }
                        None => prop_assert_eq!(result, Err(Error::NoData)),
                    }
                    prop_assert_eq!(set.test(&bm, index).ok(), model.get(index as usize).copied());
                }
                10 => {
                    set.flush(&mut tx).unwrap();
                    tx.commit();
                    set = Bitset::from_root(set.root(), set.len());
                }
                _ => check(&mut tx, &mut set, &model),
            }
        }
        check(&mut tx, &mut set, &model);
        set.delete(&mut tx).unwrap();
        prop_assert!(tx.counts().is_empty());
    }
}

#[test]
fn new_asks_for_each_bit_once() {
    let bm = MemoryBm::new(1 << 10);
    let mut tx = CountingTx::new(&bm);
    for len in [0, 1, 63, 64, 65, 40_000] {
        let mut asked = 0;
        let is_set = |i: u32| i.is_power_of_two() || i.is_multiple_of(3);
        let mut set = Bitset::new(&mut tx, len, &mut |i| {
            assert_eq!(i, asked);
            asked += 1;
            Ok(is_set(i))
        })
        .unwrap();
        assert_eq!(asked, len);
        let model: Vec<bool> = (0..len).map(is_set).collect();
        check(&mut tx, &mut set, &model);
    }
}

#[test]
fn changes_are_written_by_flush() {
    let bm = MemoryBm::new(100);
    let mut tx = CountingTx::new(&bm);
    let mut set = Bitset::new(&mut tx, 130, &mut |_| Ok(false)).unwrap();
    set.set(&mut tx, 129).unwrap();
    set.set(&mut tx, 128).unwrap();
    assert_eq!(set.cursor(&bm).err(), Some(Error::Invalid));
    let words = Array::<U64>::from_root(set.root());
    assert_eq!(words.get(&bm, 2), Ok(Some(U64::new(0))));

    // Another word takes its place.
    set.set(&mut tx, 0).unwrap();
    let words = Array::<U64>::from_root(set.root());
    assert_eq!(words.get(&bm, 2), Ok(Some(U64::new(3))));
    assert_eq!(words.get(&bm, 0), Ok(Some(U64::new(0))));
    set.flush(&mut tx).unwrap();
    let words = Array::<U64>::from_root(set.root());
    assert_eq!(words.get(&bm, 0), Ok(Some(U64::new(1))));
    assert_eq!(words.get(&bm, 3), Ok(None));

    // A copy stays what it is.
    tx.inc(set.root()..set.root() + 1).unwrap();
    let copy = Bitset::from_root(set.root(), 130);
    set.clear(&mut tx, 129).unwrap();
    set.flush(&mut tx).unwrap();
    assert_eq!(copy.test(&bm, 129), Ok(true));
    assert_eq!(set.test(&bm, 129), Ok(false));
}
