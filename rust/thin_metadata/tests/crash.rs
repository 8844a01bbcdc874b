// SPDX-License-Identifier: GPL-2.0

//! Losses of power, at every flush and in the midst of writing.

use persistent_data::memory::{
    Io,
    MemoryBm, //
};

use super::{
    check_with_tools,
    model::Model,
    tools,
    workload,
    PARAMS,
    REOPEN, //
};
use crate::{
    metadata::format,
    Metadata, //
};

/// A different half of all blocks for each `seed`.
pub(super) fn keeps(seed: u64, block: u64) -> bool {
    let x = (block ^ seed.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 63 == 1
}

/// Opens what a crash has left: it must be the old state or the new one.
pub(super) fn check(bm: MemoryBm, old: &Model, new: &Model) -> bool {
    let mut md = Metadata::open(bm, REOPEN).expect("the pool opens after a crash");
    let is_new = workload::is_changed(&md);
    let model = if is_new { new } else { old };
    model.check_committed(&mut md);
    check_with_tools(&md, model);
    is_new
}

#[test]
fn a_crash_at_a_flush_leaves_the_old_or_the_new_state() {
    let mut seen = [false; 2];
    for n in 0.. {
        let (mut md, old) = workload::base();
        let mut new = old.clone();
        workload::change(&mut md, &mut new).expect("no fault yet");
        md.bm().fail(Io::Flush, n);
        let result = md.commit();
        if md.bm().clear_fault() {
            assert_eq!(result, Ok(()));
            assert!(check(md.bm().crash(), &old, &new));
            break;
        }
        assert!(result.is_err());
        for seed in 0..4 {
            let is_new = check(
                md.bm().crash_keeping(|block| keeps(seed + 4 * n, block)),
                &old,
                &new,
            );
            seen[usize::from(is_new)] = true;
        }
        assert!(!check(md.bm().crash(), &old, &new));
        let last = check(md.bm().crash_keeping(|_| true), &old, &new);
        assert_eq!(
            last,
            n > 0,
            "the superblock is written after the first flush"
        );
        seen[usize::from(last)] = true;
    }
    assert_eq!(seen, [true; 2]);
}

#[test]
fn a_crash_before_the_commit_leaves_the_old_state() {
    let (mut md, old) = workload::base();
    let mut new = old.clone();
    workload::change(&mut md, &mut new).expect("no fault");
    for seed in 0..4 {
        let bm = md.bm().crash_keeping(|block| keeps(seed, block));
        assert!(!check(bm, &old, &new));
    }
    md.prepare_commit().expect("no fault");
    for seed in 0..4 {
        let bm = md.bm().crash_keeping(|block| keeps(seed, block));
        assert!(!check(bm, &old, &new));
    }
    assert!(!check(md.bm().crash_keeping(|_| true), &old, &new));
    md.commit().expect("no fault");
    assert!(check(md.bm().crash(), &old, &new));
}

#[test]
fn a_crash_while_formatting_leaves_nothing_or_a_pool() {
    for n in 0.. {
        let bm = MemoryBm::new(64);
        bm.fail(Io::Flush, n);
        let result = format(&bm, &PARAMS).map(drop);
        let came = !bm.clear_fault();
        assert_eq!(result.is_err(), came);
        for seed in 0..8 {
            let left = bm.crash_keeping(|block| keeps(seed, block));
            let mut md = Metadata::open(left, PARAMS).expect("it is formatted again, or opens");
            Model::new(0).check_committed(&mut md);
            tools::check(&md.bm().image()).expect("thin_check");
        }
        if !came {
            assert!(n >= 2);
            break;
        }
    }
}
