// SPDX-License-Identifier: GPL-2.0

//! Those that a thread waits for.
//!
//! As [`in_flight`](crate::in_flight), with somebody who sleeps until all have left.
//!
//! # Why the sleeper wakes up
//!
//! The last one that leaves finds its epoch passed and drained, and wakes the sleeper, or the sums that the sleeper takes
//! have it. The sleeper has the lock from summing until it sleeps, so it cannot miss who wakes it.
//!
//! `tools/testing/model` plays that through with this file.

use kernel::{
    prelude::*,
    sync::{
        new_condvar,
        new_spinlock_irq,
        CondVar,
        SpinLockIrq, //
    }, //
};

use crate::in_flight::{
    Epoch,
    InFlight, //
};

/// The set.
#[pin_data]
pub(crate) struct HoldSet {
    in_flight: InFlight,
    // Taken only to sleep and to wake; innermost of all locks.
    #[pin]
    sleepers: SpinLockIrq<()>,
    #[pin]
    drained: CondVar,
}

impl HoldSet {
    /// ENOMEM if there is no memory.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            in_flight: InFlight::new()?,
            sleepers <- new_spinlock_irq!((), "dm_thin::HoldSet"),
            drained <- new_condvar!("dm_thin::HoldSet"),
        }? Error)
    }

    /// Enters; any context.
    pub(crate) fn enter(&self) -> Epoch {
        self.in_flight.enter(|| self.wake())
    }

    /// Leaves; any context, and any CPU.
    pub(crate) fn leave(&self, epoch: Epoch) {
        self.in_flight.leave(epoch, || self.wake());
    }

    fn wake(&self) {
        let _sleepers = self.sleepers.lock();
        self.drained.notify_all();
    }

    /// Waits until all have left that entered before the call. Sleeps; at most one thread may be in here.
    pub(crate) fn wait(&self) {
        self.in_flight.turn();
        let mut sleepers = self.sleepers.lock();
        while !self.in_flight.is_drained() {
            self.drained.wait(&mut sleepers);
        }
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_thin_hold_set)]
mod tests {
    use super::*;
    use dm::workqueue::OwnedQueue;
    use kernel::{
        sync::{
            atomic::{
                ordering::{
                    Acquire,
                    Relaxed,
                    Release, //
                },
                Atomic, //
            },
            Arc, //
        },
        time::{
            delay::fsleep,
            Delta, //
        }, //
    };

    /// A mapping whose block changes again and again, and threads that use the block.
    struct Mapping {
        users: Arc<HoldSet>,
        block: Atomic<usize>,
        free: [Atomic<bool>; BLOCKS],
        used_when_free: Atomic<usize>,
        stop: Atomic<bool>,
    }

    const BLOCKS: usize = 3;
    const THREADS: usize = 4;

    impl Mapping {
        fn read(&self, pause: Delta) {
            while !self.stop.load(Relaxed) {
                let epoch = self.users.enter();
                let block = self.block.load(Acquire) % BLOCKS;
                fsleep(pause);
                if self.free[block].load(Relaxed) {
                    self.used_when_free.fetch_add(1, Relaxed);
                }
                self.users.leave(epoch);
            }
        }
    }

    #[test]
    fn no_block_is_used_when_it_is_free() -> Result {
        let mapping = Mapping {
            users: Arc::pin_init(HoldSet::new(), GFP_KERNEL)?,
            block: Atomic::new(0),
            free: [const { Atomic::new(false) }; BLOCKS],
            used_when_free: Atomic::new(0),
            stop: Atomic::new(false),
        };
        let mapping = Arc::new(mapping, GFP_KERNEL)?;
        let mut threads = KVec::with_capacity(THREADS, GFP_KERNEL)?;
        for i in 0..THREADS {
            let thread = OwnedQueue::ordered(c"dm-test")?;
            let mapping = mapping.clone();
            let pause = Delta::from_micros(20 + 10 * i as i64);
            if thread
                .spawn(GFP_KERNEL, move || mapping.read(pause))
                .is_ok()
            {
                threads.push(thread, GFP_KERNEL)?;
            }
        }
        assert_eq!(threads.len(), THREADS);
        for i in 0..1000 {
            let (old, new) = (i % BLOCKS, (i + 1) % BLOCKS);
            mapping.free[new].store(false, Relaxed);
            mapping.block.store(new, Release);
            mapping.users.wait();
            mapping.free[old].store(true, Relaxed);
            fsleep(Delta::from_micros(20));
        }
        mapping.stop.store(true, Relaxed);
        for thread in threads {
            thread.flush();
        }
        assert_eq!(mapping.used_when_free.load(Relaxed), 0);
        assert!(mapping.users.in_flight.is_drained());
        Ok(())
    }
}
