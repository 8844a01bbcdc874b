// SPDX-License-Identifier: GPL-2.0

//! Arrays against models, with exact reference counts, and corrupt blocks.

use std::collections::BTreeMap;

use proptest::prelude::*;
use zerocopy::little_endian::U64;

use super::{
    values,
    Array,
    VALIDATOR, //
};
use crate::{
    block::{
        checksum,
        BlockNr, //
    },
    block_manager::BlockManager,
    btree::{
        tests::{
            cases,
            Counted,
            CountingTx,
            Fat,
            Owned,
            TestValue, //
        },
        Plain,
        Tree, //
    },
    error::Corruption,
    memory::MemoryBm,
    transaction::Transaction,
    Error, //
};

/// The reference counts of all blocks and values that some arrays refer to.
fn references<V: TestValue>(
    bm: &MemoryBm,
    roots: impl Iterator<Item = BlockNr>,
) -> (BTreeMap<BlockNr, u32>, Owned) {
    let mut blocks = BTreeMap::new();
    let mut owned = Owned::default();
    let trees = crate::btree::tests::references::<U64>(bm, roots);
    for (block, count) in trees.values.0 {
        let guard = bm.read(block, &VALIDATOR).unwrap();
        let values = values::<V>(&guard, block).unwrap();
        values.iter().for_each(|v| owned.add(v.id()));
        blocks.insert(block, count as u32);
    }
    for (block, count) in trees.blocks {
        assert!(blocks.insert(block, count).is_none());
    }
    (blocks, owned)
}

fn check<V: TestValue>(tx: &CountingTx<'_>, owned: &Owned, arrays: &[(Array<V>, Vec<u64>)]) {
    for (array, model) in arrays {
        let mut walked = Vec::new();
        array
            .walk(tx.bm, &mut |i, v| {
                assert_eq!(i as usize, walked.len());
                walked.push(v.id());
                Ok(())
            })
            .unwrap();
        assert_eq!(walked, *model);

        let mut cursor = array.cursor(tx.bm).unwrap();
        for value in model.iter().step_by(7) {
            assert_eq!(cursor.get().map(|v| v.id()), Some(*value));
            cursor.skip(7).unwrap();
        }
        assert!(cursor.get().is_none());
        assert_eq!(cursor.next(), Ok(()));
        assert!(array.get(tx.bm, model.len() as u32).unwrap().is_none());
    }
    let (blocks, values) = references::<V>(tx.bm, arrays.iter().map(|(array, _)| array.root()));
    assert_eq!(blocks, tx.counts());
    assert_eq!(values.0, owned.0);
}

fn run<V: TestValue>(ops: &[(u8, usize, u32, u64)]) {
    let bm = MemoryBm::new(1 << 20);
    let mut tx = CountingTx::new(&bm);
    let mut owned = Owned::default();
    let array = Array::<V>::empty(&mut tx).unwrap();
    let mut arrays = vec![(array, Vec::new())];

    for &(kind, which, index, id) in ops {
        let nr = arrays.len();
        let (array, model) = &mut arrays[which % nr];
        let vt = &mut Counted::new(&mut owned);
        match kind {
            0..2 => {
                let old_len = model.len() as u32;
                array
                    .resize(&mut tx, vt, old_len, index, V::new(id))
                    .unwrap();
                model.resize(index as usize, id);
            }
            2..8 => {
                // Mostly a valid index.
                let index = match kind {
                    2 => index,
                    _ => index.checked_rem(model.len() as u32).unwrap_or(0),
                };
                let result = array.set(&mut tx, vt, index, V::new(id));
                match model.get_mut(index as usize) {
                    Some(value) => {
                        assert_eq!(result, Ok(()));
                        *value = id;
                        let found = array.get(&bm, index).unwrap();
                        assert_eq!(found.map(|v| v.id()), Some(id));
                    }
                    None => assert_eq!(result, Err(Error::NoData)),
                }
            }
            8 if nr < 4 => {
                let copy = (*array, model.clone());
                tx.inc(array.root()..array.root() + 1).unwrap();
                arrays.push(copy);
            }
            8 => {
                let (array, _) = arrays.swap_remove(which % nr);
                array.delete(&mut tx, vt).unwrap();
            }
            9 => {
                let f = &mut |i: u32| Ok(V::new(u64::from(i) % 10));
                let array = Array::new(&mut tx, vt, index, f).unwrap();
                let model = (0..u64::from(index)).map(|i| i % 10).collect();
                if nr < 4 {
                    arrays.push((array, model));
                } else {
                    array.delete(&mut tx, vt).unwrap();
                }
            }
            _ => tx.commit(),
        }
        check(&tx, &owned, &arrays);
    }
    for (array, _) in arrays {
        array
            .delete(&mut tx, &mut Counted::new(&mut owned))
            .unwrap();
    }
    assert!(tx.counts().is_empty());
    assert!(owned.0.is_empty());
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn small_values(
        ops in prop::collection::vec((0..12u8, 0..4usize, 0..3000u32, 0..20u64), 1..40)
    ) {
        run::<U64>(&ops);
    }

    #[test]
    fn large_values(
        ops in prop::collection::vec((0..12u8, 0..4usize, 0..200u32, 0..20u64), 1..40)
    ) {
        run::<Fat>(&ops);
    }
}

#[test]
fn the_validator_checks_all_of_a_block() {
    let bm = MemoryBm::new(100);
    let mut tx = CountingTx::new(&bm);
    let f = &mut |i: u32| Ok(U64::new(u64::from(i)));
    let array = Array::new(&mut tx, &mut Plain::new(), 600, f).unwrap();
    tx.commit();
    let blocks = Tree::<U64, 1>::from_root(array.root());
    let block = blocks.lookup(&bm, &[1]).unwrap().unwrap().get();
    let image = bm.image();
    let good = &image[block as usize * 4096..][..4096];
    assert_eq!(good[4..8], 509u32.to_le_bytes());
    assert_eq!(good[8..12], 91u32.to_le_bytes());
    assert_eq!(good[12..16], 8u32.to_le_bytes());
    assert_eq!(good[16..24], block.to_le_bytes());
    assert_eq!(good[24..32], 509u64.to_le_bytes());

    let with = |offset: usize, value: u32, seals: bool| {
        let bm = bm.crash();
        bm.tamper(block, |data| {
            data[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
            if seals {
                let sum = checksum(data, 595846735);
                data[..4].copy_from_slice(&sum.to_le_bytes());
            }
        });
        array.get(&bm, 600 - 1).map(|v| v.map(|v| v.get()))
    };
    let corrupt = Err(Error::Corrupt(block, Corruption::ArrayBlock));
    assert_eq!(with(8, 91, true), Ok(Some(599)));
    assert_eq!(with(8, 90, true), Ok(None));
    assert_eq!(with(8, 510, true), corrupt);
    assert_eq!(with(8, u32::MAX, true), corrupt);
    assert_eq!(with(4, 508, true), corrupt);
    assert_eq!(with(12, 0, true), corrupt);
    assert_eq!(with(12, 9, true), corrupt);
    assert!(matches!(
        with(16, 7, true),
        Err(Error::WrongLocation { .. })
    ));
    assert!(matches!(with(30, 7, false), Err(Error::Checksum { .. })));
    // Intact, but of another value size.
    let other = Array::<Fat>::from_root(array.root());
    let wanted = blocks.lookup(&bm, &[0]).unwrap().unwrap().get();
    let corrupt = Error::Corrupt(wanted, Corruption::ArrayBlock);
    assert_eq!(other.get(&bm, 0).err(), Some(corrupt));
    assert_eq!(other.walk(&bm, &mut |_, _| Ok(())), Err(corrupt));
    assert_eq!(other.cursor(&bm).err(), Some(corrupt));
}

#[test]
fn flipped_bits() {
    let bm = MemoryBm::new(4000);
    let mut tx = CountingTx::new(&bm);
    let f = &mut |i: u32| Ok(Fat::new(u64::from(i)));
    let array = Array::new(&mut tx, &mut Plain::new(), 200, f).unwrap();
    tx.commit();
    let blocks: Vec<BlockNr> = tx.counts().keys().copied().collect();
    let seed = prop_oneof![Just(121107u32), Just(595846735)];
    let flip = (
        any::<prop::sample::Index>(),
        prop_oneof![4..48usize, 4..4096usize],
        any::<u8>(),
        seed,
    );
    let flips = prop::collection::vec(flip, 1..4);
    proptest!(cases(200), |(flips in flips, index in 0..220u32)| {
        let bm = bm.crash();
        for (block, offset, byte, seed) in flips {
            bm.tamper(*block.get(&blocks), |data| {
                data[offset] = byte;
                let sum = checksum(data, seed);
                data[..4].copy_from_slice(&sum.to_le_bytes());
            });
        }
        let vt = || Plain::<Fat>::new();
        let _ = array.get(&bm, index);
        let _ = array.walk(&bm, &mut |_, _| Ok(()));
        let _ = array.cursor(&bm).and_then(|mut cursor| cursor.skip(u32::MAX));
        let set = &mut |tx: &mut CountingTx<'_>| {
            { array }.set(tx, &mut vt(), index, Fat::new(1)) //
        };
        let grow = &mut |tx: &mut CountingTx<'_>| {
            { array }.resize(tx, &mut vt(), 200, 200 + index, Fat::new(1))
        };
        let shrink = &mut |tx: &mut CountingTx<'_>| {
            { array }.resize(tx, &mut vt(), 200, 200u32.saturating_sub(index), Fat::new(1))
        };
        let delete = &mut |tx: &mut CountingTx<'_>| array.delete(tx, &mut vt());
        let changes: [&mut dyn FnMut(&mut CountingTx<'_>) -> crate::Result; 4] =
            [set, grow, shrink, delete];
        for change in changes {
            let bm = bm.crash();
            if let Err(e) = change(&mut tx.reopened(&bm)) {
                prop_assert_ne!(e, Error::NoMemory);
            }
        }
    });
}

#[test]
fn a_wrong_length_is_told() {
    let bm = MemoryBm::new(100);
    let mut tx = CountingTx::new(&bm);
    let vt = &mut Plain::<U64>::new();
    let mut array = Array::new(&mut tx, vt, 600, &mut |_| Ok(U64::new(1))).unwrap();
    let told = |result| matches!(result, Err(Error::Corrupt(_, Corruption::ArrayBlock)));
    assert!(told(array.resize(&mut tx, vt, 601, 700, U64::new(1))));
    assert!(told(array.resize(&mut tx, vt, 2000, 10, U64::new(1))));
    let error = Array::new(&mut tx, vt, 600, &mut |i| match i {
        599 => Err(Error::Invalid),
        _ => Ok(U64::new(1)),
    });
    assert_eq!(error.err(), Some(Error::Invalid));
}
