// SPDX-License-Identifier: GPL-2.0

//! Chains of backups, pruned now and then.

use std::collections::BTreeMap;

use proptest::{
    collection::vec,
    prelude::*, //
};

use super::{
    add,
    check,
    nothing,
    scratch,
    Volume, //
};
use crate::{
    repository::{
        Kind,
        Repository, //
    },
    stream::{
        tests::Numbers,
        Changes,
        Reader,
        Writer, //
    },
};

/// A backup after some changes, and how many are kept if it is followed by pruning.
#[derive(Clone, Debug)]
struct Backup {
    changes: Vec<(u8, u8)>,
    grow: u8,
    full: bool,
    keep: Option<usize>,
}

fn backup() -> impl Strategy<Value = Backup> {
    let keep = prop_oneof![4 => Just(None), 1 => (1_usize..8).prop_map(Some)];
    (vec(any::<(u8, u8)>(), 0..10), 0_u8..20, 0..10, keep).prop_map(
        |(changes, grow, full, keep)| Backup {
            changes,
            // Most do not grow.
            grow: grow.saturating_sub(15),
            full: full == 0,
            keep,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 500, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn chains_are_restored(backups in vec(backup(), 20), seed: u64, blocks in 1_usize..60) {
        let folder = scratch();
        let locked = Repository::create(folder.path()).unwrap().lock().unwrap();
        let mut numbers = Numbers(seed);
        let mut volume = Volume(vec![None; blocks]);
        let mut all = BTreeMap::new();
        for (number, backup) in (1..).zip(backups) {
            let last = all.last_key_value().map(|(_, last): (&u64, &Volume)| last.clone());
            volume.change(&backup.changes, backup.grow, number);
            let from = last.as_ref().filter(|_| !backup.full);
            let generation = add(&locked, &volume.stream(from, &mut numbers)).unwrap();
            prop_assert_eq!(generation.number, number);
            prop_assert_eq!(locked.last_of_chain("vol").unwrap().map(|last| last.header.to), Some(volume.state()));
            all.insert(number, volume.clone());
            if let Some(keep) = backup.keep {
                let there: Vec<_> = all.keys().copied().collect();
                let gone = there.len().saturating_sub(keep);
                let pruned = locked.prune("vol", keep, &mut nothing).unwrap();
                prop_assert_eq!(&pruned.removed, &there[..gone]);
                all.retain(|number, _| !there[..gone].contains(number));
                let first = &locked.generations("vol").unwrap()[0];
                prop_assert_eq!(first.kind, Kind::Full);
                prop_assert!(pruned.made_full.is_none_or(|made| made == first.number));
            }
            if numbers.below(4) == 0 {
                prop_assert_eq!(check(&locked, &all), all.keys().copied().collect::<Vec<_>>());
            }
        }
        prop_assert_eq!(check(&locked, &all), all.keys().copied().collect::<Vec<_>>());
        let found = locked.verify(None, &mut nothing).unwrap();
        prop_assert_eq!(found.problems, []);
        prop_assert_eq!(found.generations, all.len() as u64);
        let stored = locked.generations("vol").unwrap();
        let stored = stored.iter().map(|one| one.totals.stored).sum::<u64>();
        prop_assert_eq!(found.bytes, stored);
    }
}

/// More frames than are kept lie between two parts of one frame.
#[test]
fn a_frame_is_read_again() {
    let folder = scratch();
    let locked = Repository::create(folder.path()).unwrap().lock().unwrap();
    let mut volume = Volume((0..1500).map(|n| Some(4 * n + 1)).collect());
    let mut numbers = Numbers(4);
    let first = add(&locked, &volume.stream(None, &mut numbers)).unwrap();
    assert_eq!(first.totals.counts.data_frames, 3);
    for n in 0..40 {
        let last = volume.clone();
        volume.0[10 + n] = Some(n as u64 + 1);
        volume.0[60] = Some(n as u64 + 1);
        add(&locked, &volume.stream(Some(&last), &mut numbers)).unwrap();
    }
    volume.check(locked.restore("vol", None).unwrap());
}

/// What is restored is a stream as any other.
#[test]
fn a_fold_is_a_stream() {
    let folder = scratch();
    let all = super::five(folder.path(), false);
    let repository = Repository::open(folder.path()).unwrap();
    let mut fold = repository.restore("vol", Some(3)).unwrap();
    let header = fold.header().clone();
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &header).unwrap();
    writer.changes(&mut fold).unwrap();
    let totals = writer.finish().unwrap();
    let mut reader = Reader::new(bytes.as_slice()).unwrap();
    while reader.next().unwrap().is_some() {}
    assert_eq!(reader.totals(), Some(&totals));
    // It is the first backup of another repository.
    let other = scratch();
    let locked = Repository::create(other.path()).unwrap().lock().unwrap();
    add(&locked, &bytes).unwrap();
    all[&3].check(locked.restore("vol", None).unwrap());
}

/// What is being restored does not care about pruning.
#[test]
fn a_fold_outlives_pruning() {
    let folder = scratch();
    let all = super::five(folder.path(), false);
    let repository = Repository::open(folder.path()).unwrap();
    let fold = repository.restore("vol", Some(2)).unwrap();
    let locked = repository.lock().unwrap();
    let pruned = locked.prune("vol", 1, &mut nothing).unwrap();
    assert_eq!(
        (pruned.made_full, pruned.removed),
        (Some(5), vec![1, 2, 3, 4])
    );
    all[&2].check(fold);
}
