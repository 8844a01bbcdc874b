// SPDX-License-Identifier: GPL-2.0

//! Failing I/O and allocations, at every point.

use persistent_data::{
    memory::{
        Io,
        MemoryBm, //
    },
    platform::{
        allocation_failure_pending,
        fail_allocation, //
    },
};

use super::{
    check_with_tools,
    model::Model,
    reopen,
    workload, //
};
use crate::{
    Metadata,
    Result, //
};

/// The workload, with a commit at its end.
fn run(md: &mut Metadata<MemoryBm>, model: &mut Model) -> Result {
    workload::change(md, model)?;
    md.commit()
}

/// Runs the workload with a fault after `n` chances of one, and checks what is left.
///
/// Gives whether the fault came.
fn with_fault(
    inject: impl FnOnce(&Metadata<MemoryBm>),
    clear: impl FnOnce(&Metadata<MemoryBm>) -> bool,
    n: u64,
) -> bool {
    let (mut md, old) = workload::base();
    // What is in memory needs no reads.
    md.bm().forget_all();
    let mut new = old.clone();
    inject(&md);
    let result = run(&mut md, &mut new);
    if clear(&md) {
        assert_eq!(result, Ok(()));
        new.check_committed(&mut md);
        return false;
    }

    let mut current = match result {
        // Some faults hurt nobody: a block was not read ahead, or a set of shadows is not complete.
        Ok(()) => new,
        Err(e) => {
            assert!([5, 12].contains(&e.errno()), "{e}");
            md.abort().expect("the fault is gone");
            // The last flush may have failed after the superblock was written. Then it is what the device
            // shows, but a crash may still take it away.
            if workload::is_changed(&md) {
                new
            } else {
                old.clone()
            }
        }
    };
    current.check_committed(&mut md);
    let mut after_crash = reopen(&md);
    if workload::is_changed(&after_crash) == workload::is_changed(&md) {
        current.check_committed(&mut after_crash);
    } else {
        old.check_committed(&mut after_crash);
    }

    // Life goes on.
    workload::insert(&mut md, &mut current, 1, 390..395).expect("no more faults");
    workload::remove(&mut md, &mut current, 2, 3, 120).expect("no more faults");
    md.commit().expect("no more faults");
    current.check_committed(&mut md);
    current.check_committed(&mut reopen(&md));
    if n.is_multiple_of(8) {
        check_with_tools(&md, &current);
    }
    true
}

fn with_each_fault(mut f: impl FnMut(u64) -> bool) {
    let count = (0..).take_while(|&n| f(n)).count();
    assert!(count > 1, "{count}");
}

#[test]
fn reads_fail() {
    with_each_fault(|n| {
        with_fault(
            |md| md.bm().fail(Io::Read, n),
            |md| md.bm().clear_fault(),
            n,
        )
    });
}

#[test]
fn writes_fail() {
    with_each_fault(|n| {
        with_fault(
            |md| md.bm().fail(Io::Write, n),
            |md| md.bm().clear_fault(),
            n,
        )
    });
}

#[test]
fn flushes_fail() {
    with_each_fault(|n| {
        with_fault(
            |md| md.bm().fail(Io::Flush, n),
            |md| md.bm().clear_fault(),
            n,
        )
    });
}

#[test]
fn allocations_fail() {
    with_each_fault(|n| {
        with_fault(
            |_| fail_allocation(Some(n)),
            |_| {
                let pending = allocation_failure_pending();
                fail_allocation(None);
                pending
            },
            n,
        )
    });
}

#[test]
fn faults_while_opening_are_errors() {
    let (md, model) = workload::base();
    let mut failures = 0;
    for n in 0.. {
        let bm = md.bm().crash();
        bm.fail(Io::Read, n);
        match Metadata::open(bm, super::REOPEN) {
            Ok(mut md) => {
                md.bm().clear_fault();
                model.check_committed(&mut md);
                break;
            }
            Err(e) => assert_eq!(e.errno(), 5),
        }
        failures += 1;
    }
    assert!(failures >= 2, "{failures}");
}

#[test]
fn faults_while_aborting_leave_a_failed_pool_or_the_last_commit() {
    for n in 0.. {
        let (mut md, old) = workload::base();
        workload::change(&mut md, &mut old.clone()).expect("no fault yet");
        md.bm().fail(Io::Read, n);
        let result = md.abort();
        let came = !md.bm().clear_fault();
        if result.is_err() {
            assert!(came && md.is_failed());
        } else {
            old.check_committed(&mut md);
        }
        // The device never sees any of it.
        old.check_committed(&mut reopen(&md));
        if !came {
            assert!(n >= 2);
            break;
        }
    }
}
