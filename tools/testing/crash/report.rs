// SPDX-License-Identifier: GPL-2.0

//! Figures.

/// What was done.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    /// Runs, each of a seed.
    pub runs: u64,
    /// Commands.
    pub ops: u64,
    /// Epochs from flush to flush.
    pub epochs: u64,
    /// States after a loss of power, those that were seen before included.
    pub states: u64,
    /// States that the library has read.
    pub reads: u64,
    /// States that `thin_check` has read.
    pub thin_checks: u64,
    /// Runs that began with such a state.
    pub recoveries: u64,
    /// Runs in which I/O failed.
    pub io_faults: u64,
    /// Runs in which memory was short.
    pub memory_faults: u64,
}

impl Counts {
    /// Adds those of another.
    pub fn add(&mut self, other: &Self) {
        for (sum, (_, count)) in self.fields_mut().into_iter().zip(other.fields()) {
            *sum += count;
        }
    }

    /// All with their names.
    pub fn fields(&self) -> [(&'static str, u64); 9] {
        [
            ("runs", self.runs),
            ("ops", self.ops),
            ("epochs", self.epochs),
            ("states", self.states),
            ("reads", self.reads),
            ("thin_checks", self.thin_checks),
            ("recoveries", self.recoveries),
            ("io_faults", self.io_faults),
            ("memory_faults", self.memory_faults),
        ]
    }

    fn fields_mut(&mut self) -> [&mut u64; 9] {
        [
            &mut self.runs,
            &mut self.ops,
            &mut self.epochs,
            &mut self.states,
            &mut self.reads,
            &mut self.thin_checks,
            &mut self.recoveries,
            &mut self.io_faults,
            &mut self.memory_faults,
        ]
    }
}
