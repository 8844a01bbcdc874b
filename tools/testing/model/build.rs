// SPDX-License-Identifier: GPL-2.0

//! Writes the mutants: copies of the module's sources in each of which one thing is wrong.

use std::{
    env,
    fs,
    path::Path, //
};

/// The name of a mutant, what is replaced in the source, and by what.
type Mutant = (&'static str, &'static str, &'static str);

const IN_FLIGHT: &[Mutant] = &[
    (
        "enter_without_barrier",
        ".entered[usize::from(epoch)].fetch_add(1, Full)",
        ".entered[usize::from(epoch)].fetch_add(1, Relaxed)",
    ),
    (
        "enter_without_second_look",
        "if self.epoch.load(Acquire) == epoch {",
        "if true {",
    ),
    (
        "second_look_relaxed",
        "if self.epoch.load(Acquire) == epoch {",
        "if self.epoch.load(Relaxed) == epoch {",
    ),
    (
        "enter_without_taking_back",
        "self.leave(Epoch(epoch), &drained);\n",
        "",
    ),
    (
        "take_back_without_telling",
        "self.leave(Epoch(epoch), &drained);",
        "self.leave(Epoch(epoch), || ());",
    ),
    (
        "leave_without_release",
        ".left[usize::from(epoch)].fetch_add(1, Full);",
        ".left[usize::from(epoch)].fetch_add(1, Relaxed); smp_mb(Full);",
    ),
    (
        "leave_without_barrier",
        ".left[usize::from(epoch)].fetch_add(1, Full)",
        ".left[usize::from(epoch)].fetch_add(1, kernel::sync::atomic::ordering::Release)",
    ),
    (
        "leave_without_telling",
        "self.has_drained(epoch) {\n            drained();",
        "self.has_drained(epoch) {",
    ),
    (
        "look_then_leave",
        "self.counts.here().left[usize::from(epoch)].fetch_add(1, Full);
        if self.epoch.load(Relaxed) != epoch && self.has_drained(epoch) {",
        "let current = self.epoch.load(Relaxed);
        self.counts.here().left[usize::from(epoch)].fetch_add(1, Full);
        if current != epoch && self.has_drained(epoch) {",
    ),
    (
        "sum_then_leave",
        "self.counts.here().left[usize::from(epoch)].fetch_add(1, Full);
        if self.epoch.load(Relaxed) != epoch && self.has_drained(epoch) {",
        "let last = self.has_drained(epoch);
        self.counts.here().left[usize::from(epoch)].fetch_add(1, Full);
        if self.epoch.load(Relaxed) != epoch && last {",
    ),
    ("sum_without_barrier", "smp_mb(Full);", ""),
    (
        "sum_entered_first",
        "let left = sum(|counts| &counts.left);
        smp_mb(Full);
        let entered = sum(|counts| &counts.entered);",
        "let entered = sum(|counts| &counts.entered);
        smp_mb(Full);
        let left = sum(|counts| &counts.left);",
    ),
    (
        "turn_without_barrier",
        "self.epoch.xchg(!former, Full);",
        "self.epoch.xchg(!former, Relaxed);",
    ),
    ("no_turn", "self.epoch.xchg(!former, Full);", ""),
    (
        "wait_for_the_new_epoch",
        "self.has_drained(!self.epoch.load(Relaxed))",
        "self.has_drained(self.epoch.load(Relaxed))",
    ),
    (
        "always_drained",
        "self.has_drained(!self.epoch.load(Relaxed))",
        "true",
    ),
];

const HOLD_SET: &[Mutant] = &[
    (
        "leave_without_waking",
        "self.in_flight.leave(epoch, || self.wake());",
        "self.in_flight.leave(epoch, || ());",
    ),
    (
        "wake_without_lock",
        "let _sleepers = self.sleepers.lock();",
        "",
    ),
    (
        "turn_after_waiting",
        "self.in_flight.turn();
        let mut sleepers = self.sleepers.lock();
        while !self.in_flight.is_drained() {
            self.drained.wait(&mut sleepers);
        }",
        "let mut sleepers = self.sleepers.lock();
        while !self.in_flight.is_drained() {
            self.drained.wait(&mut sleepers);
        }
        self.in_flight.turn();",
    ),
    (
        "sum_without_lock",
        "let mut sleepers = self.sleepers.lock();
        while !self.in_flight.is_drained() {
            self.drained.wait(&mut sleepers);
        }",
        "while !self.in_flight.is_drained() {
            self.drained.wait(&mut self.sleepers.lock());
        }",
    ),
];

const MAPPING_CACHE: &[Mutant] = &[
    (
        "get_relaxed",
        "get(word)?.load(Acquire)",
        "get(word)?.load(Relaxed)",
    ),
    (
        "put_relaxed",
        "slot.store(entry.word, Release)",
        "slot.store(entry.word, Relaxed)",
    ),
    ("forget_nothing", "word.store(UNKNOWN, Relaxed)", ""),
    (
        "committed_relaxed",
        "self.changes.load(Acquire) == COMMITTED",
        "self.changes.load(Relaxed) == COMMITTED",
    ),
    (
        "set_committed_relaxed",
        "self.changes.store(COMMITTED, Release)",
        "self.changes.store(COMMITTED, Relaxed)",
    ),
];

const CELLS: &[Mutant] = &[
    (
        "wait_for_another_device",
        "if key.device != device || cell",
        "if cell",
    ),
    (
        "wait_for_a_later_block",
        "|| cell.begin >= blocks.end {",
        "{",
    ),
    (
        "pass_the_first_block",
        "cell.begin >= blocks.end",
        "cell.begin + 1 >= blocks.end",
    ),
    (
        "pass_the_last_block",
        "last: blocks.end.checked_sub(1).ok_or(EINVAL)?",
        "last: blocks.end.checked_sub(1).ok_or(EINVAL)?.saturating_sub(1)",
    ),
    (
        "look_from_the_next_block",
        "last: blocks.start,",
        "last: blocks.start + 1,",
    ),
    (
        "release_without_bios",
        "core::mem::take(&mut cell.get_mut().waiting)",
        "{ let _ = cell.get_mut(); ThinBios::new() }",
    ),
    (
        "release_nothing",
        "self.rooms.give(cell.remove_node().into_reservation());",
        "",
    ),
];

/// The mutants of a file of the module, each in a module of its own; `imp` says how it is played.
fn mutate(file: &str, mutants: &[Mutant], imp: &str) -> String {
    let source = format!("../../../rust/dm_thin/{file}");
    println!("cargo::rerun-if-changed={source}");
    let source = fs::read_to_string(source).unwrap();
    let mut out = String::new();
    for (name, from, to) in mutants {
        if source.matches(from).count() != 1 {
            // It is no mutant then, and its test fails.
            println!("cargo::warning=mutant {name}: not once in {file}: {from}");
        }
        // Module documentation cannot be included.
        let mutant = source
            .replace(from, to)
            .lines()
            .filter(|line| !line.starts_with("//!"))
            .fold(String::new(), |text, line| text + line + "\n");
        out += &format!(
            "#[allow(unused)]
             pub(crate) mod {name} {{
             {mutant}
             {}
             }}\n",
            imp.replace("MUTANT", &format!("mutants::{name}"))
        );
    }
    out
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let mut out = mutate(
        "in_flight.rs",
        IN_FLIGHT,
        "pub(crate) struct Mutant;
         impl crate::protocol::Parts for Mutant {
             type Set = (InFlight, crate::protocol::Worker);
             type Cache = crate::mapping_cache::MappingCache;
         }
         crate::protocol::impl_in_flight!(MUTANT);",
    );
    out += &mutate(
        "hold_set.rs",
        HOLD_SET,
        "pub(crate) struct Mutant;
         impl crate::protocol::Parts for Mutant {
             type Set = HoldSet;
             type Cache = crate::mapping_cache::MappingCache;
         }
         crate::protocol::impl_hold_set!(MUTANT);",
    );
    out += &mutate(
        "mapping_cache.rs",
        MAPPING_CACHE,
        "pub(crate) struct Mutant;
         impl crate::protocol::Parts for Mutant {
             type Set = (crate::in_flight::InFlight, crate::protocol::Worker);
             type Cache = MappingCache;
         }
         crate::protocol::impl_cache!(MUTANT);",
    );
    out += &mutate("cells.rs", CELLS, "crate::prison::impl_prison!(MUTANT);");
    let path = Path::new(&env::var_os("OUT_DIR").unwrap()).join("mutants.rs");
    fs::write(path, out).unwrap();
}
