// SPDX-License-Identifier: GPL-2.0

//! The part for each day: fixed seeds.

use dm_thin_crash::{
    caught::caught,
    faults,
    replay::Judge, //
};

#[test]
fn losses_of_power_leave_the_old_or_the_new_state() {
    let mut judge = Judge::default();
    for seed in 0..48 {
        caught(|| judge.run(seed)).unwrap_or_else(|e| {
            panic!(
                "seed {seed}: {e}\n  replay: dm-thin-crash --replay {seed}:{}",
                judge.state()
            )
        });
    }
    println!("{:?}, {} distinct", judge.counts, judge.nr_distinct());
    assert!(judge.nr_distinct() >= 20_000, "{}", judge.nr_distinct());
}

#[test]
fn faults_leave_the_old_or_the_new_state() {
    let mut judge = faults::judge();
    for seed in 0..24 {
        let count = caught(|| faults::run_seed(seed, &mut judge)).unwrap_or_else(|e| {
            panic!("seed {seed}: {e}\n  replay: dm-thin-crash --replay {seed} --faults")
        });
        println!(
            "seed {seed}: {count} faults, {:?}, {} distinct states",
            judge.counts,
            judge.nr_distinct()
        );
    }
    println!("{:?}, {} distinct", judge.counts, judge.nr_distinct());
    assert!(judge.counts.io_faults > 2_000 && judge.counts.memory_faults > 400);
}
