// SPDX-License-Identifier: GPL-2.0

//! Commits in steps: what works in between, and what an interruption at any of them leaves.

use std::sync::RwLock;

use persistent_data::memory::{
    Io,
    MemoryBm, //
};

use super::{
    check_with_tools,
    model::{
        id,
        Model, //
    },
    pool,
    provision,
    reopen,
    workload,
    REOPEN, //
};
use crate::{
    Error,
    Flushed,
    Mapping,
    Metadata,
    Result, //
};

/// All that a commit takes.
pub(super) const NR_STEPS: usize = 5;

/// Takes the first `n` steps of a commit.
pub(super) fn take_steps(md: &mut Metadata<MemoryBm>, n: usize) -> Result {
    let mut flushed = None;
    let take = |flushed: &mut Option<Flushed>| flushed.take().expect("the step before");
    for step in 0..n {
        match step {
            0 => assert!(md.prepare_commit()?),
            1 | 3 => flushed = Some(md.flush()?),
            2 => md.write_superblock(take(&mut flushed))?,
            _ => md.finish_commit(take(&mut flushed))?,
        }
    }
    Ok(())
}

#[test]
fn look_ups_work_between_the_steps_and_changes_do_not() {
    for n in 1..NR_STEPS {
        let (mut md, old) = workload::base();
        let mut new = old.clone();
        workload::change(&mut md, &mut new).expect("no faults here");
        let thin = md.open_thin(id(1)).unwrap();
        take_steps(&mut md, n).unwrap();

        new.check(&mut md);
        assert!(md.needs_commit());
        assert!(md.changed_this_transaction());
        assert!(md.thin_changed_this_transaction(&thin));
        assert_eq!(md.prepare_commit(), Ok(true));
        let changes = [
            md.create_thin(id(9)),
            md.create_snap(id(9), id(1)),
            md.delete_thin(id(5), &mut |_| ()),
            md.insert_block(&thin, 4, 4, &mut |_| ()),
            md.remove_range(&thin, 0, 9, &mut |_| ()),
            md.alloc_data_block(&mut |_| true).map(drop),
            md.resize_data(5000),
            md.set_transaction_id(0, 1),
            md.release_metadata_snap(&mut |_| ()),
        ];
        assert_eq!(changes, [Err(Error::Prepared); 9]);
        new.check(&mut md);

        // Whoever discards what is free must not meet what the last commit still uses.
        let used = old.used();
        let mut begin = 0;
        while let Some(free) = md.find_free_range(begin, new.pool.nr_data).unwrap() {
            assert!(used.range(free.clone()).next().is_none());
            begin = free.end;
        }

        md.commit().unwrap();
        new.check_committed(&mut md);
        new.check_committed(&mut reopen(&md));
        assert!(!md.thin_changed_this_transaction(&thin));
        md.close_thin(&thin);
    }
}

#[test]
fn others_look_up_while_devices_are_written_to() {
    let (mut md, _) = workload::base();
    let thin = md.open_thin(id(1)).unwrap();
    let md = RwLock::new(md);
    let found = md.read().unwrap().find_block(&thin, 7, true);
    assert!(matches!(found, Ok(Some(Mapping { .. }))));
    let done = std::sync::atomic::AtomicBool::new(false);

    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(md.read().unwrap().find_block(&thin, 7, true), found);
                }
            });
        }
        for n in 0..100 {
            provision(&mut md.write().unwrap(), &thin, 1000 + n).unwrap();
            assert_eq!(md.write().unwrap().prepare_commit(), Ok(true));
            let flushed = md.read().unwrap().flush().unwrap();
            md.write().unwrap().write_superblock(flushed).unwrap();
            let flushed = md.read().unwrap().flush().unwrap();
            md.write().unwrap().finish_commit(flushed).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });

    let mut md = md.into_inner().unwrap();
    md.close_thin(&thin);
    let mut md = reopen(&md);
    let thin = md.open_thin(id(1)).unwrap();
    assert_eq!(md.highest_mapped(&thin), Ok(Some(1099)));
    md.close_thin(&thin);
}

#[test]
fn no_step_comes_without_the_flush_before() {
    let mut md = pool(256, 10);
    assert_eq!(md.flush(), Err(Error::NotPrepared));
    md.create_thin(id(1)).unwrap();
    assert_eq!(md.flush(), Err(Error::NotPrepared));

    // One of a commit that was given up.
    take_steps(&mut md, 1).unwrap();
    let old = md.flush().unwrap();
    md.abort().unwrap();
    md.create_thin(id(2)).unwrap();
    take_steps(&mut md, 1).unwrap();
    assert_eq!(md.write_superblock(old), Err(Error::NotPrepared));

    // One of a step too early.
    let early = md.flush().unwrap();
    assert_eq!(md.finish_commit(early), Err(Error::NotPrepared));
    let (flushed, early) = (md.flush().unwrap(), md.flush().unwrap());
    md.write_superblock(flushed).unwrap();
    assert_eq!(md.finish_commit(early), Err(Error::NotPrepared));
    let again = md.flush().unwrap();
    assert_eq!(md.write_superblock(again), Err(Error::NotPrepared));
    assert!(md.needs_commit() && !md.needs_abort());

    let (flushed, late) = (md.flush().unwrap(), md.flush().unwrap());
    md.finish_commit(flushed).unwrap();
    assert_eq!(md.finish_commit(late), Err(Error::NotPrepared));
    let thin = reopen(&md).open_thin(id(2)).unwrap();
    assert_eq!(thin.id(), id(2));
}

/// Opens what a crash has left: it must be the old state or the new one.
fn check(bm: MemoryBm, old: &Model, new: &Model) -> bool {
    let mut md = Metadata::open(bm, REOPEN).expect("the pool opens after a crash");
    let is_new = workload::is_changed(&md);
    let model = if is_new { new } else { old };
    model.check_committed(&mut md);
    check_with_tools(&md, model);
    is_new
}

#[test]
fn an_abort_between_the_steps_leaves_what_the_device_has() {
    for n in 0..=NR_STEPS {
        let (mut md, old) = workload::base();
        let mut current = old.clone();
        workload::change(&mut md, &mut current).expect("no faults here");
        take_steps(&mut md, n).unwrap();
        md.abort().unwrap();
        // What was not flushed is dropped here.
        if n < 4 {
            current = old;
        }
        current.check_committed(&mut md);

        workload::insert(&mut md, &mut current, 1, 390..395).unwrap();
        take_steps(&mut md, NR_STEPS).unwrap();
        current.check_committed(&mut md);
        current.check_committed(&mut reopen(&md));
    }
}

/// Has I/O fail in one of the two flushes of a commit.
fn with_failed_flush(io: Io, after: u64, nr_steps: usize) {
    let (mut md, old) = workload::base();
    let mut new = old.clone();
    workload::change(&mut md, &mut new).expect("no faults here");
    let thin = md.open_thin(id(1)).unwrap();
    take_steps(&mut md, nr_steps).unwrap();
    md.bm().fail(io, after);
    assert_eq!(md.flush().map(drop).map_err(Error::errno), Err(5));
    assert!(!md.bm().clear_fault());

    // The device would not tell again.
    assert!(md.needs_abort() && md.needs_commit());
    let dead = Err(Error::NeedsAbort);
    assert_eq!(md.flush().map(drop), dead);
    assert_eq!(md.commit(), dead);
    assert_eq!(md.prepare_commit().map(drop), dead);
    assert_eq!(md.find_block(&thin, 0, true).map(drop), dead);
    assert_eq!(md.create_thin(id(9)), dead);

    assert!(!check(md.bm().crash(), &old, &new));
    md.abort().unwrap();
    assert!(!md.needs_abort());
    // The superblock may have been written, but not flushed.
    let mut current = match workload::is_changed(&md) {
        true => new,
        false => old,
    };
    current.check_committed(&mut md);
    md.close_thin(&thin);
    workload::insert(&mut md, &mut current, 1, 390..395).unwrap();
    take_steps(&mut md, NR_STEPS).unwrap();
    current.check_committed(&mut reopen(&md));
}

#[test]
fn a_flush_that_fails_is_not_forgotten() {
    for nr_steps in [1, 3] {
        with_failed_flush(Io::Flush, 0, nr_steps);
        with_failed_flush(Io::Write, 0, nr_steps);
    }
    with_failed_flush(Io::Write, 5, 1);
}

#[test]
fn a_flush_for_needs_check_that_fails_is_not_forgotten() {
    for nr_steps in [0, 1, 3] {
        let (mut md, old) = workload::base();
        workload::change(&mut md, &mut old.clone()).expect("no faults here");
        take_steps(&mut md, nr_steps).unwrap();
        md.bm().fail(Io::Write, 0);
        md.set_needs_check().unwrap();
        assert!(!md.bm().clear_fault());
        assert_eq!(md.commit(), Err(Error::NeedsAbort));
        md.abort().unwrap();
        assert!(md.needs_check());
    }
}

#[test]
fn nothing_to_commit_means_that_a_crash_takes_nothing_away() {
    for read_only in [false, true] {
        let (mut md, old) = workload::base();
        let mut new = old.clone();
        workload::change(&mut md, &mut new).expect("no faults here");
        take_steps(&mut md, 3).unwrap();
        md.bm().fail(Io::Flush, 0);
        assert_eq!(md.flush().map(drop).map_err(Error::errno), Err(5));
        md.abort().unwrap();
        // The superblock is on the device, but not stable.
        assert!(workload::is_changed(&md));
        assert!(md.is_unstable());
        assert!(!check(md.bm().crash(), &old, &new));

        md.set_read_only(read_only);
        md.bm().fail(Io::Flush, 0);
        assert_eq!(md.commit().map_err(Error::errno), Err(5));
        assert!(md.is_unstable());
        md.commit().unwrap();
        assert!(!md.is_unstable());
        assert!(check(md.bm().crash(), &old, &new));
    }
}

#[test]
fn what_is_found_is_stable_before_it_is_changed() {
    let (md, _) = workload::base();
    let flushes = |md: &Metadata<MemoryBm>| md.bm().counts().flushes;
    let mut md = reopen(&md);
    assert_eq!(flushes(&md), 0);
    md.create_thin(id(7)).unwrap();
    assert_eq!(flushes(&md), 1);
    md.create_thin(id(8)).unwrap();
    assert_eq!(flushes(&md), 1);
    // Once for each step of a commit.
    md.commit().unwrap();
    md.create_thin(id(9)).unwrap();
    assert_eq!(flushes(&md), 3);
}

#[test]
fn a_device_that_is_read_only_meanwhile_gets_its_commit_later() {
    for nr_steps in [1, 2, 3] {
        let (mut md, old) = workload::base();
        let mut new = old.clone();
        workload::change(&mut md, &mut new).expect("no faults here");
        take_steps(&mut md, nr_steps).unwrap();
        md.set_read_only(true);
        assert_eq!(md.flush().map(drop), Err(Error::ReadOnly));
        assert_eq!(md.commit(), Err(Error::ReadOnly));
        assert!(!md.needs_abort());
        new.check(&mut md);
        md.set_read_only(false);
        md.commit().unwrap();
        new.check_committed(&mut md);
    }
}
