// SPDX-License-Identifier: GPL-2.0

//! Backups that are damaged.

use std::{
    fs,
    path::Path, //
};

use super::{
    add,
    five,
    nothing,
    scratch,
    Volume, //
};
use crate::{
    error::Error,
    files::steps::stopped,
    repository::Repository,
    stream::{
        tests::Numbers,
        Changes, //
    },
};

fn problems(repository: &Repository) -> Vec<u64> {
    let found = repository.verify(Some("vol"), &mut nothing).unwrap();
    found.problems.iter().map(|one| one.generation).collect()
}

/// What is restored is right, or refused.
#[track_caller]
fn right_or_refused(repository: &Repository, number: u64, right: &Volume) -> bool {
    let mut fold = match repository.restore("vol", Some(number)) {
        Err(Error::Damaged(_)) => return false,
        fold => fold.unwrap(),
    };
    loop {
        match fold.next() {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(Error::Damaged(_)) => {
                assert!(matches!(fold.next(), Err(Error::Damaged(_))));
                return false;
            }
            Err(e) => panic!("{e}"),
        }
    }
    right.check(repository.restore("vol", Some(number)).unwrap());
    true
}

/// Changes anything anywhere: generation 4 is full again.
#[test]
fn flipped_bits_are_found() {
    let folder = scratch();
    let all = five(folder.path(), true);
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(problems(&repository), [0; 0]);
    let mut numbers = Numbers(7);
    let mut harmless = 0;
    for (number, broken) in [
        (1, &[1, 2, 3][..]),
        (2, &[2, 3]),
        (3, &[3]),
        (4, &[4, 5]),
        (5, &[5]),
    ] {
        let kind = if number == 1 || number == 4 {
            "full"
        } else {
            "incremental"
        };
        let path = folder.path().join(format!("vol/{number:06}.{kind}.thin"));
        let good = fs::read(&path).unwrap();
        for _ in 0..150 {
            let mut bad = good.clone();
            bad[numbers.below(good.len() as u64) as usize] ^= 1 << numbers.below(8);
            fs::write(&path, &bad).unwrap();
            assert_eq!(problems(&repository), broken);
            for (other, right) in &all {
                let restored = right_or_refused(&repository, *other, right);
                assert!(restored || broken.contains(other));
                harmless += u32::from(restored && broken.contains(other));
            }
        }
        for bad in [
            &good[..good.len() - 1],
            &[],
            &[good.as_slice(), b"x"].concat(),
        ] {
            fs::write(&path, bad).unwrap();
            assert_eq!(problems(&repository), broken);
        }
        fs::write(&path, &good).unwrap();
    }
    // In what was written again later.
    assert!(harmless > 0);
    assert_eq!(problems(&repository), [0; 0]);
}

#[test]
fn a_damaged_manifest_restores_nothing_wrong() {
    let folder = scratch();
    let all = five(folder.path(), false);
    let repository = Repository::open(folder.path()).unwrap();
    let path = folder.path().join("vol/000003.incremental.json");
    let good = fs::read(&path).unwrap();
    for i in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[i / 8] ^= 1 << (i % 8);
        fs::write(&path, &bad).unwrap();
        let restored = right_or_refused(&repository, 3, &all[&3]);
        // Only the time of the backup is nowhere else, and digits of states may be large or small.
        let line = good[..i / 8].iter().rposition(|byte| *byte == b'\n');
        let line = String::from_utf8_lossy(&good[line.unwrap_or(0)..]);
        let line = line.trim_start();
        let same = ["\"created\"", "\"to\"", "\"from\""]
            .iter()
            .any(|name| line.starts_with(name));
        assert!(
            !restored || same || good[i / 8].is_ascii_whitespace(),
            "bit {i}: {line}"
        );
    }
}

#[test]
fn missing_files_are_found() {
    let lose = |name: &str| {
        let folder = scratch();
        let all = five(folder.path(), false);
        fs::remove_file(folder.path().join("vol").join(name)).unwrap();
        (folder, all)
    };
    for name in ["000003.incremental.thin", "000003.incremental.json"] {
        let (folder, all) = lose(name);
        let repository = Repository::open(folder.path()).unwrap();
        let expected: &[u64] = if name.ends_with("thin") {
            &[4, 5]
        } else {
            &[3, 4, 5]
        };
        assert_eq!(problems(&repository), expected);
        assert!(right_or_refused(&repository, 2, &all[&2]));
        assert!(!right_or_refused(&repository, 4, &all[&4]));
        // Nothing is built on it but a full backup.
        let locked = repository.lock().unwrap();
        let stream = |from: Option<&Volume>| all[&4].stream(from, &mut Numbers(1));
        assert!(matches!(
            add(&locked, &stream(Some(&all[&5]))),
            Err(Error::Damaged(_))
        ));
        assert!(locked.prune("vol", 1, &mut nothing).is_err());
        assert!(matches!(
            locked.last_of_chain("vol"),
            Err(Error::Damaged(_))
        ));
        add(&locked, &stream(None)).unwrap();
        assert!(right_or_refused(&locked, 6, &all[&4]));
        assert!(locked.last_of_chain("vol").unwrap().is_some());
        // Data are not thrown away because a manifest is missing.
        assert_eq!(
            folder.path().join("vol/000003.incremental.thin").exists(),
            name.ends_with("json")
        );
    }
    let (folder, all) = lose("000001.full.thin");
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(problems(&repository), [2, 3, 4, 5]);
    assert!(!right_or_refused(&repository, 5, &all[&5]));
}

/// What is to go need not be readable, and nothing else goes because of it.
#[test]
fn damage_can_be_pruned() {
    for name in ["000002.incremental.json", "000003.incremental.thin"] {
        let folder = scratch();
        let all = five(folder.path(), true);
        fs::write(folder.path().join("vol").join(name), b"x").unwrap();
        let locked = Repository::open(folder.path()).unwrap().lock().unwrap();
        // The oldest one that would stay cannot be restored.
        assert!(locked.prune("vol", 3, &mut nothing).is_err());
        assert_eq!(locked.list("vol").unwrap().len(), 5);
        locked.prune("vol", 2, &mut nothing).unwrap();
        assert_eq!(super::check(&locked, &all), [4, 5]);
    }
}

/// Without reading all of it.
#[test]
fn a_chain_without_an_end_is_found() {
    for damage in [
        |good: &[u8]| good[..good.len() - 1].to_vec(),
        |good: &[u8]| [good, b"x"].concat(),
        |_: &[u8]| Vec::new(),
        |good: &[u8]| vec![0; good.len()],
    ] {
        for (number, is_in_chain) in [(1, false), (2, false), (4, true), (5, true)] {
            let folder = scratch();
            five(folder.path(), true);
            let kind = match number {
                1 | 4 => "full",
                _ => "incremental",
            };
            let path = folder.path().join(format!("vol/{number:06}.{kind}.thin"));
            let good = fs::read(&path).unwrap();
            fs::write(&path, damage(&good)).unwrap();
            let last = Repository::open(folder.path())
                .unwrap()
                .last_of_chain("vol");
            match is_in_chain {
                true => assert!(matches!(last, Err(Error::Damaged(_))), "{number}"),
                false => assert_eq!(last.unwrap().map(|last| last.number), Some(5)),
            }
        }
    }
}

/// Not even the newest ones are forgotten because nothing is left of them but the manifest.
#[test]
fn lost_data_are_told_of() {
    for lost in [vec![5], vec![4, 5], vec![1, 2, 3, 4, 5]] {
        let folder = scratch();
        let all = five(folder.path(), false);
        let repository = Repository::open(folder.path()).unwrap();
        for number in &lost {
            let kind = if *number == 1 { "full" } else { "incremental" };
            fs::remove_file(folder.path().join(format!("vol/{number:06}.{kind}.thin"))).unwrap();
        }
        for _ in 0..2 {
            let found = repository.verify(None, &mut nothing).unwrap();
            let problems: Vec<_> = found.problems.iter().map(|one| one.generation).collect();
            assert_eq!(problems, lost);
            assert!(matches!(
                repository.restore("vol", None),
                Err(Error::Damaged(_))
            ));
            assert!(matches!(
                repository.last_of_chain("vol"),
                Err(Error::Damaged(_))
            ));
            // Nor does whoever comes to write take it for what was cut off.
            drop(repository.lock().unwrap());
        }
        assert_eq!(repository.restore("vol", Some(3)).is_ok(), lost.len() < 5);
        let again = all[&5].stream(None, &mut Numbers(1));
        let locked = repository.lock().unwrap();
        assert_eq!(add(&locked, &again).unwrap().number, 6);
        assert!(repository.restore("vol", None).is_ok());
        locked.prune("vol", 1, &mut nothing).unwrap();
        drop(locked);
        drop(repository.lock().unwrap());
        assert_eq!(repository.verify(None, &mut nothing).unwrap().problems, []);
        assert_eq!(fs::read_dir(folder.path().join("vol")).unwrap().count(), 2);
    }
}

/// One volume that is damaged does not keep others from being backed up. A full copy that is damaged goes if what it was made
/// of is not; otherwise nothing is removed.
#[test]
fn damage_does_not_lock_out() {
    let folder = scratch();
    let all = five(folder.path(), false);
    let repository = Repository::open(folder.path()).unwrap();
    // Pruning stops after it has made generation 4 full.
    let full = folder.path().join("vol/000004.full.json");
    for left in 0..50 {
        let locked = repository.lock().unwrap();
        let _ = stopped(left, || locked.prune("vol", 2, &mut nothing));
        if folder.path().join("vol/000004.full.thin").exists() {
            break;
        }
    }
    let stream = full.with_extension("thin");
    let good = fs::read(&full).unwrap();
    let data = fs::read(&stream).unwrap();
    let count = || fs::read_dir(folder.path().join("vol")).unwrap().count();
    let before = count();
    // One that leads to something else is damaged, too.
    let text = String::from_utf8(good.clone()).unwrap();
    let to = all[&4].state().to_string();
    let other = text.replace(&to, &all[&1].state().to_string());
    let old = folder.path().join("vol/000003.incremental.thin");
    let needed = fs::read(&old).unwrap();
    for (number, bad) in ["{}", &other].into_iter().enumerate() {
        fs::write(&full, bad).unwrap();
        fs::write(&old, b"").unwrap();
        let locked = repository.lock().unwrap();
        let first = all[&1].stream(None, &mut Numbers(1));
        locked
            .add(&format!("other {number}"), None, |w| {
                w.write_all(&first).map_err(Error::io("writing"))
            })
            .unwrap();
        drop(locked);
        assert_eq!(count(), before);
        fs::write(&old, &needed).unwrap();
        drop(repository.lock().unwrap());
        assert_eq!(count(), before - 2);
        assert_eq!(super::check(&repository, &all), [1, 2, 3, 4, 5]);
        fs::write(&full, &good).unwrap();
        fs::write(&stream, &data).unwrap();
    }
    drop(repository.lock().unwrap());
    assert_eq!(super::check(&repository, &all), [4, 5]);
}

/// Streams in each other's place.
#[test]
fn exchanged_streams_are_found() {
    let folder = scratch();
    let all = five(folder.path(), false);
    let path = |number: u64| {
        folder
            .path()
            .join(format!("vol/{number:06}.incremental.thin"))
    };
    exchange(&path(2), &path(3));
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(problems(&repository), [2, 3, 4, 5]);
    assert!(!right_or_refused(&repository, 2, &all[&2]));
}

/// A generation of another chain, all right by itself.
#[test]
fn another_chain_is_found() {
    let [one, other] = [scratch(), scratch()];
    let all = five(one.path(), false);
    let mut volume = Volume(vec![None; 41]);
    let locked = Repository::create(other.path()).unwrap().lock().unwrap();
    for n in 1..4 {
        let last = volume.clone();
        volume.0[n] = Some(n as u64);
        let from = (n > 1).then_some(&last);
        add(&locked, &volume.stream(from, &mut Numbers(1))).unwrap();
    }
    for name in ["000003.incremental.json", "000003.incremental.thin"] {
        let [one, other] = [&one, &other].map(|folder| folder.path().join("vol").join(name));
        fs::copy(other, one).unwrap();
    }
    let repository = Repository::open(one.path()).unwrap();
    assert_eq!(problems(&repository), [3, 4, 5]);
    assert!(!right_or_refused(&repository, 3, &volume));
    assert!(right_or_refused(&repository, 2, &all[&2]));
}

fn exchange(one: &Path, two: &Path) {
    let kept = fs::read(one).unwrap();
    fs::copy(two, one).unwrap();
    fs::write(two, kept).unwrap();
}
