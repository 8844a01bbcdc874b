// SPDX-License-Identifier: GPL-2.0

//! Holding back those who send I/O faster than the worker can take it.

use dm::{
    new_rwsem,
    RwSemaphore,
    WriteGuard, //
};
use kernel::{
    prelude::*,
    time::{
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// A lock that the worker takes when one of its rounds takes too long, and that everybody who hands bios to
/// it takes for reading.
///
/// Who waits for it may be in the midst of a bio that device-mapper has split: other parts are on the list of its task
/// then, with their places in the set of bios in flight, and do not move before it goes on. So the worker must not wait
/// for bios in flight while it has the lock; it waits for the devices, the metadata and the mode only.
///
/// Lock order: before all locks of the pool.
#[pin_data]
pub(crate) struct Throttle {
    #[pin]
    lock: RwSemaphore<()>,
}

/// A round of the worker; the throttle is let go at its end.
pub(crate) struct Round<'a> {
    throttle: &'a Throttle,
    started: Instant<Monotonic>,
    applied: Option<WriteGuard<'a, ()>>,
}

impl Throttle {
    /// How long a round may take before others are held back.
    const THRESHOLD: Delta = Delta::from_secs(1);

    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            lock <- new_rwsem!((), "dm_thin::Throttle"),
        })
    }

    /// Runs `f` once the worker keeps up.
    pub(crate) fn pass<R>(&self, f: impl FnOnce() -> R) -> R {
        let _passing = self.lock.read();
        f()
    }

    /// Begins a round of the worker.
    pub(crate) fn start(&self) -> Round<'_> {
        Round {
            throttle: self,
            started: Instant::now(),
            applied: None,
        }
    }
}

impl Round<'_> {
    /// Applies the throttle if the round has taken too long; to be called now and then.
    pub(crate) fn update(&mut self) {
        if self.applied.is_none() && self.started.elapsed() > Throttle::THRESHOLD {
            self.applied = Some(self.throttle.lock.write());
        }
    }
}
