// SPDX-License-Identifier: GPL-2.0

//! The machine stops at each step.

use std::{
    collections::BTreeMap,
    fs,
    path::{
        Path,
        PathBuf, //
    },
};

use tempfile::TempDir;

use super::{
    add,
    check,
    five,
    nothing,
    scratch,
    Volume, //
};
use crate::{
    error::Result,
    files::{
        steps::{
            failed,
            logged,
            stopped, //
        },
        Step, //
    },
    repository::Repository,
    stream::tests::Numbers,
};

fn copy(from: &Path) -> TempDir {
    fn copy_folder(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap() {
            let (from, to) = (
                entry.as_ref().unwrap().path(),
                to.join(entry.unwrap().file_name()),
            );
            if from.is_dir() {
                fs::create_dir(&to).unwrap();
                copy_folder(&from, &to);
            } else {
                fs::copy(from, to).unwrap();
            }
        }
    }
    let copy = scratch();
    copy_folder(from, copy.path());
    copy
}

fn files(root: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(root.join("vol"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Lets the machine stop at each step of `operate`, and then at each step of what the next one does to clean up. Those
/// `before` must be there whenever it stops, and `after` it is as if nothing had happened.
fn stops(
    base: &Path,
    all: &BTreeMap<u64, Volume>,
    before: &[u64],
    after: &[u64],
    operate: &dyn Fn(&Repository) -> Result,
) -> usize {
    let whole = copy(base);
    operate(&Repository::open(whole.path()).unwrap()).unwrap();
    let right = files(whole.path());
    for left in 0.. {
        let folder = copy(base);
        let repository = Repository::open(folder.path()).unwrap();
        let (result, has_stopped) = stopped(left, || operate(&repository));
        if !has_stopped || result.is_ok() {
            result.unwrap();
            assert_eq!(files(folder.path()), right);
            return left;
        }
        let look = |repository: &Repository, what: &str| {
            let there = check(repository, all);
            assert!(
                before.iter().all(|n| there.contains(n)),
                "{what}: {there:?}"
            );
        };
        look(&repository, &format!("after {left} steps"));
        for left in 0.. {
            let folder = copy(folder.path());
            let repository = Repository::open(folder.path()).unwrap();
            let (locked, has_stopped) = stopped(left, || repository.lock());
            look(&repository, &format!("after {left} steps of cleaning up"));
            if locked.is_ok() || !has_stopped {
                drop(locked.unwrap());
                break;
            }
        }
        let locked = repository.lock().unwrap();
        look(&locked, "after cleaning up");
        assert!(!files(folder.path())
            .iter()
            .any(|name| name.starts_with('.')));
        drop(locked);
        // Whether it was done or not, it can be done.
        if check(&repository, all) != after {
            operate(&repository).unwrap();
        }
        assert_eq!(check(&repository, all), after);
        assert_eq!(files(folder.path()), right, "after {left} steps");
    }
    unreachable!()
}

#[test]
fn add_stops_anywhere() {
    let base = scratch();
    let mut all = five(base.path(), false);
    let last = all[&5].clone();
    let mut volume = last.clone();
    volume.change(&[(3, 5), (9, 3), (20, 2)], 1, 99);
    all.insert(6, volume.clone());
    let stream = volume.stream(Some(&last), &mut Numbers(1));
    let steps = stops(
        base.path(),
        &all,
        &[1, 2, 3, 4, 5],
        &[1, 2, 3, 4, 5, 6],
        &|repository| add(&repository.lock()?, &stream).map(drop),
    );
    assert!(steps > 8, "{steps}");
}

/// One step fails, and what is done then does not.
#[test]
fn add_fails_anywhere() {
    let base = scratch();
    let mut all = five(base.path(), false);
    let mut volume = all[&5].clone();
    volume.change(&[(3, 5), (9, 3), (20, 2)], 1, 99);
    let stream = volume.stream(Some(&all[&5]), &mut Numbers(1));
    all.insert(6, volume);
    for left in 0.. {
        let folder = copy(base.path());
        let repository = Repository::open(folder.path()).unwrap();
        let operate = || add(&repository.lock()?, &stream).map(drop);
        let (result, has_failed) = failed(left, operate);
        assert_eq!(
            repository.verify(None, &mut nothing).unwrap().problems,
            [],
            "{left}"
        );
        let there = check(&repository, &all);
        assert!(there.starts_with(&[1, 2, 3, 4, 5]), "{left}: {there:?}");
        if result.is_err() && there.len() == 5 {
            operate().unwrap();
        }
        assert_eq!(check(&repository, &all), [1, 2, 3, 4, 5, 6]);
        if !has_failed {
            assert!(left > 8, "{left}");
            break;
        }
    }
}

#[test]
fn the_first_add_stops_anywhere() {
    let base = scratch();
    Repository::create(base.path()).unwrap();
    let volume = Volume(vec![Some(1), None, Some(2)]);
    let stream = volume.stream(None, &mut Numbers(1));
    for left in 0.. {
        let folder = copy(base.path());
        let repository = Repository::open(folder.path()).unwrap();
        let operate = || add(&repository.lock()?, &stream).map(drop);
        let (result, _) = stopped(left, operate);
        if result.is_ok() {
            assert!(left > 8, "{left}");
            break;
        }
        if repository.volumes().unwrap().is_empty() {
            operate().unwrap();
        }
        assert_eq!(repository.volumes().unwrap(), ["vol"]);
        volume.check(repository.restore("vol", Some(1)).unwrap());
        drop(repository.lock().unwrap());
        assert_eq!(
            files(folder.path()),
            ["000001.full.json", "000001.full.thin"]
        );
    }
}

#[test]
fn prune_stops_anywhere() {
    for (fourth_full, keep) in [(false, 2), (true, 2), (true, 1), (false, 4)] {
        let base = scratch();
        let all = five(base.path(), fourth_full);
        let kept: Vec<_> = (6 - keep as u64..6).collect();
        let steps = stops(base.path(), &all, &kept, &kept, &|repository| {
            repository
                .lock()?
                .prune("vol", keep, &mut nothing)
                .map(drop)
        });
        assert!(steps > 5, "{steps}");
    }
}

#[test]
fn create_stops_anywhere() {
    for left in 0.. {
        let folder = scratch();
        let root = folder.path().join("new");
        let (result, _) = stopped(left, || Repository::create(&root));
        if result.is_ok() {
            assert!(left > 4, "{left}");
            break;
        }
        // It is one, or can be made one.
        if Repository::open(&root).is_err() {
            Repository::create(&root).unwrap();
        }
        drop(Repository::open(&root).unwrap().lock().unwrap());
        assert_eq!(fs::read_dir(&root).unwrap().count(), 2);
    }
}

/// What the full copy does not need goes first, so that it has room.
#[test]
fn prune_makes_room_first() {
    let base = scratch();
    five(base.path(), true);
    let locked = Repository::open(base.path()).unwrap().lock().unwrap();
    let (result, log) = logged(|| locked.prune("vol", 1, &mut nothing));
    let pruned = result.unwrap();
    assert_eq!(
        (pruned.made_full, pruned.removed),
        (Some(5), vec![1, 2, 3, 4])
    );
    let position = |wanted: Step, name: &str| {
        log.iter()
            .position(|(step, path)| *step == wanted && path.ends_with(name))
    };
    let copied = position(Step::Create, "vol");
    assert!(copied.is_some());
    for name in [
        "000001.full.thin",
        "000002.incremental.thin",
        "000003.incremental.thin",
    ] {
        assert!(position(Step::Remove, name) < copied, "{log:?}");
    }
    assert!(position(Step::Remove, "000004.full.thin") > copied);
    in_order(&log);
}

/// Nothing relies on what may still be in memory only.
#[track_caller]
fn in_order(log: &[(Step, PathBuf)]) {
    let find = |before: usize, wanted: &dyn Fn(Step, &Path) -> bool| {
        log[..before]
            .iter()
            .rposition(|(step, path)| wanted(*step, path))
    };
    for (i, (step, path)) in log.iter().enumerate() {
        let folder = path.parent().unwrap();
        let is_stream = path.extension().is_some_and(|end| end == "thin");
        let synced = find(i, &|step, path| step == Step::SyncFolder && path == folder);
        let last = |kind: Step| {
            find(i, &|step, path| {
                step == kind && path.parent() == Some(folder)
            })
        };
        match step {
            Step::Rename => {
                // The file is on disk.
                assert!(last(Step::Sync) > last(Step::Write), "{path:?}: {log:?}");
                // Its manifest is in place.
                assert!(
                    !is_stream || synced > last(Step::Rename),
                    "{path:?}: {log:?}"
                );
            }
            Step::Remove => {
                assert!(synced >= last(Step::Rename), "{path:?}: {log:?}");
                let streams = find(i, &|step, other| {
                    step == Step::Remove
                        && other.extension().is_some_and(|end| end == "thin")
                        && other != path
                });
                assert!(synced >= streams, "{path:?}: {log:?}");
            }
            _ => {}
        }
    }
    let last = |kind: Step| log.iter().rposition(|(step, _)| *step == kind);
    assert!(last(Step::SyncFolder) > last(Step::Rename), "{log:?}");
}

#[test]
fn nothing_relies_on_what_is_not_on_disk() {
    let base = scratch();
    let all = five(base.path(), false);
    let locked = Repository::open(base.path()).unwrap().lock().unwrap();
    let stream = all[&1].stream(None, &mut Numbers(1));
    let (result, log) = logged(|| add(&locked, &stream));
    result.unwrap();
    assert_eq!(
        log.iter().filter(|(step, _)| *step == Step::Rename).count(),
        2
    );
    in_order(&log);
    let (result, log) = logged(|| locked.prune("vol", 3, &mut nothing));
    assert_eq!(result.unwrap().made_full, Some(4));
    assert_eq!(
        log.iter().filter(|(step, _)| *step == Step::Remove).count(),
        8
    );
    in_order(&log);
}
