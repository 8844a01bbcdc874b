// SPDX-License-Identifier: GPL-2.0

//! Reading while another adds and removes backups, and two that write.

use std::{
    cell::Cell,
    fs,
    io::Write,
    path::Path,
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    thread,
};

use super::{
    add,
    check,
    five,
    nothing,
    scratch,
    Volume, //
};
use crate::{
    error::Error,
    files::NewFile,
    repository::{
        add::{
            put,
            About, //
        },
        Locked,
        Repository, //
    },
    stream::{
        tests::Numbers,
        Changes, //
    },
};

/// Each block has the number of the generation.
fn volume(n: u64) -> Volume {
    Volume(vec![Some(4 * n + 1); 8])
}

#[test]
fn reading_needs_no_lock() {
    let folder = scratch();
    let repository = Repository::create(folder.path()).unwrap();
    let locked = repository.lock().unwrap();
    let mut numbers = Numbers(1);
    let mut add_next = |n: u64| {
        let from = (n > 1).then(|| volume(n - 1));
        add(&locked, &volume(n).stream(from.as_ref(), &mut numbers)).unwrap();
    };
    (1..4).for_each(&mut add_next);
    let over = &AtomicBool::new(false);
    let read = || {
        let mut times = 0;
        while !over.load(Ordering::Relaxed) || times == 0 {
            let generations = repository.generations("vol").unwrap();
            assert!(!generations.is_empty());
            let mut fold = repository.restore("vol", None).unwrap();
            while fold.next().unwrap().is_some() {}
            assert!(repository.last_of_chain("vol").unwrap().is_some());
            for one in generations {
                match repository.restore("vol", Some(one.number)) {
                    // It may be gone by now.
                    Err(Error::NotFound(_)) => {}
                    fold => volume(one.number).check(fold.unwrap()),
                }
            }
            let found = repository.verify(None, &mut nothing).unwrap();
            assert_eq!(found.problems, []);
            times += 1;
        }
        times
    };
    thread::scope(|scope| {
        let reading = scope.spawn(read);
        for n in 4..400 {
            add_next(n);
            if n % 3 == 0 {
                locked
                    .prune("vol", 1 + n as usize % 4, &mut nothing)
                    .unwrap();
            }
            if reading.is_finished() {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
        assert!(reading.join().unwrap() > 5);
    });
}

/// A writer on another host, which does not see the lock.
fn lock_elsewhere(root: &Path) -> Locked {
    fs::remove_file(root.join(".lock")).unwrap();
    Repository::open(root).unwrap().lock().unwrap()
}

/// Generation 6 of two writers, of which the second begins and ends while the first one is at work.
#[test]
fn one_of_two_writers_fails() {
    for full in [false, true] {
        let folder = scratch();
        let mut all = five(folder.path(), false);
        let (mut ours, mut theirs) = (all[&5].clone(), all[&5].clone());
        ours.0[3] = Some(601);
        theirs.0[3] = Some(602);
        let last = Some(&all[&5]).filter(|_| !full);
        let stream = ours.stream(last, &mut Numbers(1));
        let other = theirs.stream(Some(&all[&5]), &mut Numbers(1));
        let locked = Repository::open(folder.path()).unwrap().lock().unwrap();
        let added = locked.add("vol", None, |w| {
            add(&lock_elsewhere(folder.path()), &other)?;
            w.write_all(&stream).map_err(Error::io("writing"))
        });
        assert!(matches!(added, Err(Error::Busy(_))), "{added:?}");
        all.insert(6, theirs);
        assert_eq!(check(&locked, &all), [1, 2, 3, 4, 5, 6]);
        assert_eq!(locked.verify(None, &mut nothing).unwrap().problems, []);
        assert_eq!(fs::read_dir(folder.path().join("vol")).unwrap().count(), 12);
        // Nor does it remove what the other one may build on.
        assert!(matches!(
            locked.prune("vol", 1, &mut nothing),
            Err(Error::Busy(_))
        ));
        assert_eq!(check(&locked, &all), [1, 2, 3, 4, 5, 6]);
    }
}

/// The second writer has cleaned up and is at work when the first one ends.
#[test]
fn the_first_of_two_writers_fails() {
    let folder = scratch();
    let all = five(folder.path(), false);
    let stream = all[&1].stream(None, &mut Numbers(1));
    let locked = Repository::open(folder.path()).unwrap().lock().unwrap();
    let mut other = None;
    let added = locked.add("vol", None, |w| {
        w.write_all(&stream).map_err(Error::io("writing"))?;
        other = Some(lock_elsewhere(folder.path()));
        Ok(())
    });
    assert!(matches!(added, Err(Error::Busy(_))), "{added:?}");
    assert_eq!(check(&locked, &all), [1, 2, 3, 4, 5]);
    add(&other.unwrap(), &stream).unwrap();
    assert_eq!(locked.verify(None, &mut nothing).unwrap().problems, []);
}

/// Another host, which the lock does not reach, has listed the folder before the stream was put in place, and takes the manifest
/// for what was left behind.
#[test]
fn a_manifest_that_is_gone_comes_again() {
    let folder = scratch();
    let all = five(folder.path(), false);
    let locked = Repository::open(folder.path()).unwrap().lock().unwrap();
    let manifest = folder.path().join("vol/000006.full.json");
    let looks = Cell::new(0);
    let is_free = || {
        looks.set(looks.get() + 1);
        if looks.get() == 2 {
            fs::remove_file(&manifest).unwrap();
        }
        Ok(())
    };
    let about = About {
        number: 6,
        created: 1,
        source: None,
    };
    let stream = all[&1].stream(None, &mut Numbers(1));
    let write = |w: &mut dyn Write| w.write_all(&stream).map_err(Error::io("writing"));
    put(
        &folder.path().join("vol"),
        about,
        |_| Ok(()),
        &is_free,
        write,
    )
    .unwrap();
    assert_eq!(looks.get(), 2);
    assert!(manifest.exists());
    assert_eq!(locked.verify(None, &mut nothing).unwrap().problems, []);
}

#[test]
fn no_file_takes_the_place_of_another() {
    let folder = scratch();
    let mut file = NewFile::new(folder.path(), "new").unwrap();
    let path = folder.path().join("name");
    fs::write(&path, "there").unwrap();
    assert!(matches!(file.commit("name"), Err(Error::Busy(_))));
    drop(file);
    assert_eq!(fs::read_to_string(&path).unwrap(), "there");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
