// SPDX-License-Identifier: GPL-2.0

//! `dm::PerCpu`, and the CPU that a thread runs on.

use crate::prelude::Error;
use std::cell::Cell;

const CPUS: usize = 2;

loom::thread_local! {
    static CPU: Cell<usize> = Cell::new(0);
}

/// Goes on on this CPU.
pub(crate) fn run_on(cpu: usize) {
    assert!(cpu < CPUS);
    CPU.with(|here| here.set(cpu));
}

/// A value for each CPU.
pub(crate) struct PerCpu<T>(Vec<T>);

impl<T> PerCpu<T> {
    pub(crate) fn new(init: impl FnMut() -> T) -> Result<Self, Error> {
        Ok(Self(std::iter::repeat_with(init).take(CPUS).collect()))
    }

    pub(crate) fn here(&self) -> &T {
        &self.0[CPU.with(Cell::get)]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }
}
