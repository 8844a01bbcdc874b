// SPDX-License-Identifier: GPL-2.0

//! What bios, changes and evictions do at once, and what must be found out.
//!
//! The tests that are ignored look deeper and take minutes.

use crate::{
    mutants,
    percpu::run_on,
    protocol::{
        Module,
        Parts,
        Sleeper,
        Slip,
        Volume, //
    },
};
use loom::{
    model::Builder,
    sync::mpsc,
    thread::{
        self,
        JoinHandle, //
    },
};
use std::sync::{
    atomic::{
        AtomicUsize,
        Ordering, //
    },
    Arc, //
};

/// How a scenario is played.
#[derive(Clone, Copy)]
struct Play {
    /// How often threads may be interrupted, all together. Where they wait they are passed in any case.
    preemptions: Option<usize>,
    /// Whether the mapping is in the cache.
    cached: bool,
    /// Where the block moves to by the first change, if not to nowhere.
    new: Option<usize>,
    slip: Option<Slip>,
}

/// A mapping that is in the cache moves.
const fn hit(preemptions: usize) -> Play {
    Play {
        preemptions: Some(preemptions),
        cached: true,
        new: Some(1),
        slip: None,
    }
}

/// As above, and it is not in the cache.
const fn miss(preemptions: usize) -> Play {
    Play {
        cached: false,
        ..hit(preemptions)
    }
}

/// As [`hit`], and the block is not mapped any more.
const fn discard(preemptions: usize) -> Play {
    Play {
        new: None,
        ..hit(preemptions)
    }
}

impl Play {
    const fn slip(self, slip: Slip) -> Self {
        Self {
            slip: Some(slip),
            ..self
        }
    }

    const fn exhaustive(self) -> Self {
        Self {
            preemptions: None,
            ..self
        }
    }

    fn run<P: Parts>(self, scenario: impl Fn(Arc<Volume<P>>) + Send + Sync + 'static) {
        let mut builder = Builder::new();
        builder.preemption_bound = self.preemptions;
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            scenario(Volume::new(self.cached, self.slip));
        });
        println!("{} interleavings", runs.load(Ordering::Relaxed));
    }

    fn change<P: Parts>(self, volume: &Volume<P>) {
        volume.change(self.new);
    }
}

/// Runs `f` in a thread on this CPU.
fn on<P: Parts>(
    cpu: usize,
    volume: &Arc<Volume<P>>,
    f: impl FnOnce(&Volume<P>) + Send + 'static,
) -> JoinHandle<()> {
    let volume = volume.clone();
    thread::spawn(move || {
        run_on(cpu);
        f(&volume);
    })
}

fn join<const N: usize>(threads: [JoinHandle<()>; N]) {
    for thread in threads {
        thread.join().unwrap();
    }
}

/// A bio, which ends on another CPU, and a change.
fn one_bio<P: Parts>(play: Play) {
    play.run::<P>(move |volume| {
        let bio = on(1, &volume, |volume| volume.bio(0));
        play.change(&volume);
        join([bio]);
    });
}

/// A bio that another thread ends, and a change.
fn bio_ends_elsewhere<P: Parts>(play: Play) {
    play.run::<P>(move |volume| {
        let (sender, receiver) = mpsc::channel();
        let begin = on(1, &volume, move |volume| {
            let (epoch, block) = volume.begin();
            volume.transfer(block);
            sender.send(epoch).unwrap();
        });
        let end = on(0, &volume, move |volume| {
            volume.end(receiver.recv().unwrap());
        });
        play.change(&volume);
        join([begin, end]);
    });
}

/// Two bios, which end on the same CPU, and a change.
fn two_bios<P: Parts>(play: Play) {
    play.run::<P>(move |volume| {
        let bios = [0, 1].map(|cpu| on(cpu, &volume, |volume| volume.bio(1)));
        play.change(&volume);
        join(bios);
    });
}

/// A bio, a change and an eviction.
fn one_bio_evicted<P: Parts>(play: Play) {
    play.run::<P>(move |volume| {
        let bio = on(1, &volume, |volume| volume.bio(0));
        let eviction = on(1, &volume, |volume| volume.evict());
        play.change(&volume);
        join([bio, eviction]);
    });
}

/// Two bios, a change and an eviction.
fn two_bios_evicted<P: Parts>(play: Play) {
    play.run::<P>(move |volume| {
        let bios = [0, 1].map(|cpu| on(cpu, &volume, |volume| volume.bio(1)));
        let eviction = on(1, &volume, |volume| volume.evict());
        play.change(&volume);
        join(bios);
        join([eviction]);
    });
}

/// A bio and two changes in a row: the epoch returns to what it was.
fn two_changes<P: Parts>(play: Play) {
    play.run::<P>(move |volume| {
        let bio = on(1, &volume, |volume| volume.bio(0));
        play.change(&volume);
        volume.change(Some(2));
        join([bio]);
    });
}

/// Two bios and two changes in a row.
fn two_bios_two_changes<P: Parts>(play: Play) {
    play.run::<P>(move |volume| {
        let bios = [0, 1].map(|cpu| on(cpu, &volume, |volume| volume.bio(1)));
        play.change(&volume);
        volume.change(Some(2));
        join(bios);
    });
}

/// A bio with FUA, and a change that is committed.
fn bio_with_fua<P: Parts>(play: Play) {
    play.run::<P>(move |volume| {
        let bio = on(1, &volume, |volume| volume.bio_with_fua());
        volume.change_and_commit(play.new);
        join([bio]);
    });
}

macro_rules! hold {
    ($($(#[$attr:meta])* $name:ident: $scenario:ident$(::<$parts:ident>)?($($play:tt)+);)*) => {
        /// That nobody meets another's block, and nobody sleeps forever.
        mod hold {
            use super::*;

            $(
                #[test]
                $(#[$attr])*
                fn $name() {
                    type Parts = hold!(@parts $($parts)?);
                    $scenario::<Parts>($($play)+);
                }
            )*
        }
    };
    (@parts) => { Module };
    (@parts $parts:ident) => { $parts };
}

hold! {
    one_bio_that_hits: one_bio(hit(3));
    one_bio_that_misses: one_bio(miss(3));
    one_bio_and_a_discard: one_bio(discard(3));
    a_bio_that_hits_and_ends_elsewhere: bio_ends_elsewhere(hit(3));
    a_bio_that_misses_and_ends_elsewhere: bio_ends_elsewhere(miss(2));
    two_bios_that_hit: two_bios(hit(2));
    two_bios_that_miss: two_bios(miss(2));
    two_bios_and_a_discard: two_bios(discard(2));
    one_bio_that_is_evicted: one_bio_evicted(hit(2));
    one_bio_that_is_evicted_and_a_discard: one_bio_evicted(discard(2));
    two_bios_that_are_evicted: two_bios_evicted(hit(1));
    two_changes_in_a_row: two_changes(hit(3));
    a_discard_and_a_change_in_a_row: two_changes(discard(3));
    two_bios_and_two_changes: two_bios_two_changes(hit(1));
    a_bio_with_fua: bio_with_fua(hit(3));
    a_sleeper_and_one_bio: one_bio::<Sleeper>(hit(3));
    a_sleeper_and_two_bios: two_bios::<Sleeper>(hit(2));
    a_sleeper_and_a_bio_that_ends_elsewhere: bio_ends_elsewhere::<Sleeper>(hit(2));

    #[ignore = "takes minutes"]
    one_bio_that_hits_exhaustively: one_bio(hit(0).exhaustive());
    #[ignore = "takes minutes"]
    one_bio_that_misses_deeper: one_bio(miss(6));
    #[ignore = "takes minutes"]
    a_bio_that_hits_and_ends_elsewhere_deeper: bio_ends_elsewhere(hit(4));
    #[ignore = "takes minutes"]
    two_bios_that_hit_deeper: two_bios(hit(3));
    #[ignore = "takes minutes"]
    two_bios_that_miss_deeper: two_bios(miss(3));
    #[ignore = "takes minutes"]
    two_bios_that_are_evicted_deeper: two_bios_evicted(hit(2));
    #[ignore = "takes minutes"]
    two_bios_that_are_evicted_and_a_discard_deeper: two_bios_evicted(discard(2));
    #[ignore = "takes minutes"]
    two_changes_in_a_row_deeper: two_changes(hit(5));
    #[ignore = "takes minutes"]
    two_bios_and_two_changes_deeper: two_bios_two_changes(hit(2));
    #[ignore = "takes minutes"]
    a_bio_with_fua_deeper: bio_with_fua(hit(6));
}

macro_rules! fall {
    ($($name:ident: $scenario:ident($($play:tt)+), $reason:expr;)*) => {
        /// That each mutant is found out.
        mod fall {
            use super::*;

            $(
                #[test]
                #[should_panic(expected = $reason)]
                fn $name() {
                    $scenario::<mutants::$name::Mutant>($($play)+);
                }
            )*
        }
    };
}

fall! {
    enter_without_barrier: one_bio(hit(2)), "Causality violation";
    enter_without_second_look: two_changes(hit(2)), "Causality violation";
    second_look_relaxed: two_changes(hit(2)), "Causality violation";
    enter_without_taking_back: one_bio(hit(2)), "deadlock";
    leave_without_release: one_bio(hit(2)), "Causality violation";
    leave_without_barrier: one_bio(hit(2)), "deadlock";
    leave_without_telling: one_bio(hit(2)), "deadlock";
    take_back_without_telling: one_bio(hit(2)), "deadlock";
    look_then_leave: one_bio(hit(2)), "deadlock";
    sum_then_leave: one_bio(hit(2)), "deadlock";
    sum_without_barrier: one_bio(hit(3)), "Causality violation";
    sum_entered_first: one_bio(hit(3)), "Causality violation";
    turn_without_barrier: one_bio(hit(2)), "deadlock";
    no_turn: one_bio(hit(2)), "Causality violation";
    wait_for_the_new_epoch: one_bio(hit(2)), "deadlock";
    always_drained: one_bio(hit(2)), "Causality violation";

    leave_without_waking: one_bio(hit(2)), "deadlock";
    wake_without_lock: one_bio(hit(2)), "deadlock";
    turn_after_waiting: one_bio(hit(2)), "Causality violation";
    sum_without_lock: one_bio(hit(2)), "deadlock";

    get_relaxed: one_bio(hit(2)), "Causality violation";
    put_relaxed: one_bio(hit(2)), "Causality violation";
    forget_nothing: one_bio(discard(2)), "Causality violation";
    committed_relaxed: bio_with_fua(hit(2)), "a bio with FUA met an uncommitted mapping";
    set_committed_relaxed: bio_with_fua(hit(2)), "a bio with FUA met an uncommitted mapping";
}

macro_rules! slip {
    ($($name:ident: $scenario:ident($play:expr, $slip:ident), $reason:expr;)*) => {
        /// That each slip of the protocol is found out.
        mod slip {
            use super::*;

            $(
                #[test]
                #[should_panic(expected = $reason)]
                fn $name() {
                    $scenario::<Module>($play.slip(Slip::$slip));
                }
            )*
        }
    };
}

slip! {
    look_then_enter: one_bio(hit(2), LookThenEnter), "Causality violation";
    fill_unlocked: two_bios(miss(2), FillUnlocked), "Causality violation";
    leave_then_use: one_bio(hit(2), LeaveThenUse), "Causality violation";
    no_invalidation: one_bio(hit(2), NoInvalidation), "Causality violation";
    wait_then_invalidate: one_bio(hit(2), WaitThenInvalidate), "Causality violation";
    no_wait: one_bio(hit(2), NoWait), "Causality violation";
    not_noted: bio_with_fua(hit(2), NotNoted), "a bio with FUA met an uncommitted mapping";
    tell_then_note: bio_with_fua(hit(2), TellThenNote), "a bio with FUA met an uncommitted mapping";
    ask_then_look: bio_with_fua(hit(2), AskThenLook), "a bio with FUA met an uncommitted mapping";
}
