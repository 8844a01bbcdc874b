// SPDX-License-Identifier: GPL-2.0

//! Reading while another adds and removes backups.

use std::{
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    thread,
};

use super::{
    add,
    nothing,
    scratch,
    Volume, //
};
use crate::{
    error::Error,
    repository::Repository,
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
            assert!(repository.last_state("vol").unwrap().is_some());
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
