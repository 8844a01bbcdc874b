// SPDX-License-Identifier: GPL-2.0

//! The bios on their way to the data device.
//!
//! A bio is sent to a data block because a mapping said so. Once the mapping is gone, the block may be
//! given to another volume, but not before all bios that may still use the old mapping have ended. So each
//! bio enters this set *before* it looks at a mapping and leaves when it has ended, and whoever wants to
//! reuse a block first removes the mapping and then waits for the bios that had entered by then.
//!
//! The set knows only two epochs. [`InFlight::quiesce`] turns to the other epoch and waits until all bios of
//! the former one have left. Each CPU counts on its own how many bios entered each epoch there and how many
//! left, maybe others, as bios end anywhere: only the sums over all CPUs mean something, and they may wrap.
//!
//! # Why a bio that had entered is waited for
//!
//! [`enter`](InFlight::enter) counts the bio and then looks whether the epoch is still the same;
//! [`quiesce`](InFlight::quiesce) changes the epoch and then sums. Both have a full barrier in between, so
//! either the bio sees the new epoch, and takes itself back, or the sum of those that entered has the bio.
//!
//! The sum of those that left is taken before, with a full barrier in between. So whoever is in it has
//! entered visibly by then, and is in the sum of those that entered, too. If both sums are equal, therefore,
//! they are about the very same bios: whoever is counted as entered has left. It does not matter that more
//! bios enter and leave while the sums are taken, nor how many.
//!
//! What a bio did before it left is done then: `leave` counts after it, with a full barrier, and the sum is
//! taken with one before anything else.
//!
//! # Why no other bio has to be waited for
//!
//! A bio that is not waited for has seen an epoch that began with this call of `quiesce` or a later one when
//! it looked for the second time. That look is an acquire, so the bio sees everything that was done before the
//! call: the mapping is gone. It may have counted itself long after the first look, when both epochs had
//! passed, but the second look tells where it belongs.
//!
//! # Why the sleeper wakes up
//!
//! `leave` counts and then looks at the epoch, with a full barrier in between. Either it sees that its epoch
//! has passed, and wakes the sleeper, or the sums have it. The sleeper holds the lock from summing until it
//! sleeps, so it cannot miss who wakes it.
//!
//! `tools/testing/model` plays all that through with this file.

use dm::PerCpu;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Full,
                Relaxed, //
            },
            Atomic,
            AtomicFlag, //
        },
        barrier::smp_mb,
        new_condvar,
        new_spinlock_irq,
        CondVar,
        SpinLockIrq, //
    }, //
};

/// Proof that a bio is in the set; given back by [`InFlight::leave`].
#[must_use = "the bio stays in flight until its epoch is given to `leave`"]
pub(crate) struct Epoch(bool);

/// What a CPU has counted, by epoch.
#[repr(align(32))]
struct Counts {
    entered: [Atomic<usize>; 2],
    left: [Atomic<usize>; 2],
}

impl Counts {
    fn new() -> Self {
        Self {
            entered: [Atomic::new(0), Atomic::new(0)],
            left: [Atomic::new(0), Atomic::new(0)],
        }
    }
}

/// The set of bios in flight.
///
/// In a cache line of its own: each bio reads the epoch, which others rarely change.
#[pin_data]
#[repr(align(64))]
pub(crate) struct InFlight {
    epoch: AtomicFlag,
    counts: PerCpu<Counts>,
    // Taken only to sleep and to wake; innermost of all locks.
    #[pin]
    sleepers: SpinLockIrq<()>,
    #[pin]
    drained: CondVar,
}

impl InFlight {
    /// ENOMEM if there is no memory.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            epoch: AtomicFlag::new(false),
            counts: PerCpu::new(Counts::new)?,
            sleepers <- new_spinlock_irq!((), "dm_thin::InFlight"),
            drained <- new_condvar!("dm_thin::InFlight"),
        }? Error)
    }

    /// Enters a bio; any context.
    #[inline]
    pub(crate) fn enter(&self) -> Epoch {
        loop {
            let epoch = self.epoch.load(Relaxed);
            self.counts.here().entered[usize::from(epoch)].fetch_add(1, Full);
            if self.epoch.load(Acquire) == epoch {
                return Epoch(epoch);
            }
            self.leave(Epoch(epoch));
        }
    }

    /// A bio has ended; any context, and any CPU.
    #[inline]
    pub(crate) fn leave(&self, Epoch(epoch): Epoch) {
        self.counts.here().left[usize::from(epoch)].fetch_add(1, Full);
        if self.epoch.load(Relaxed) != epoch {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        let _sleepers = self.sleepers.lock();
        self.drained.notify_all();
    }

    /// Whether all bios have left that entered `epoch`, which has passed.
    fn is_drained(&self, epoch: bool) -> bool {
        let epoch = usize::from(epoch);
        let sum = |count: fn(&Counts) -> &[Atomic<usize>; 2]| {
            self.counts.iter().fold(0usize, |sum, counts| {
                sum.wrapping_add(count(counts)[epoch].load(Relaxed))
            })
        };
        let left = sum(|counts| &counts.left);
        smp_mb(Full);
        let entered = sum(|counts| &counts.entered);
        left == entered
    }

    /// Waits until all bios have left that entered before the call.
    ///
    /// Sleeps. At most one thread may be in here at a time: the pool's worker.
    pub(crate) fn quiesce(&self) {
        let former = self.epoch.load(Relaxed);
        self.epoch.xchg(!former, Full);

        let mut sleepers = self.sleepers.lock();
        while !self.is_drained(former) {
            self.drained.wait(&mut sleepers);
        }
    }
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_thin_in_flight)]
mod tests {
    use super::*;
    use dm::workqueue::OwnedQueue;
    use kernel::{
        sync::{
            atomic::ordering::Release,
            Arc, //
        },
        time::{
            delay::fsleep,
            Delta, //
        }, //
    };

    impl InFlight {
        /// How many bios there are of an epoch.
        fn count(&self, epoch: bool) -> usize {
            let epoch = usize::from(epoch);
            self.counts.iter().fold(0usize, |sum, counts| {
                sum.wrapping_add(counts.entered[epoch].load(Relaxed))
                    .wrapping_sub(counts.left[epoch].load(Relaxed))
            })
        }
    }

    #[test]
    fn quiesce_waits_only_for_the_former_epoch() -> Result {
        let set = KBox::pin_init(InFlight::new(), GFP_KERNEL)?;
        let first = set.enter();
        assert!(!first.0);
        assert_eq!(set.count(false), 1);
        set.leave(first);
        set.quiesce();

        let second = set.enter();
        assert!(second.0);
        assert_eq!(set.count(true), 1);
        assert!(set.is_drained(false));
        assert!(!set.is_drained(true));
        set.leave(second);
        set.quiesce();
        assert!(set.is_drained(true));
        assert!(!set.epoch.load(Relaxed));
        Ok(())
    }

    /// As a number that is counted for long does.
    #[test]
    fn counts_wrap() -> Result {
        let set = KBox::pin_init(InFlight::new(), GFP_KERNEL)?;
        for counts in set.counts.iter() {
            counts.entered[0].store(usize::MAX, Relaxed);
            counts.left[0].store(usize::MAX, Relaxed);
        }
        let first = set.enter();
        let second = set.enter();
        assert_eq!(set.count(false), 2);
        set.leave(first);
        assert!(!set.is_drained(false));
        set.leave(second);
        set.quiesce();
        assert_eq!(set.count(false), 0);
        Ok(())
    }

    /// A mapping whose block changes again and again, and threads that use the block.
    #[pin_data]
    struct Mapping {
        #[pin]
        in_flight: InFlight,
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
                let epoch = self.in_flight.enter();
                let block = self.block.load(Acquire) % BLOCKS;
                fsleep(pause);
                if self.free[block].load(Relaxed) {
                    self.used_when_free.fetch_add(1, Relaxed);
                }
                self.in_flight.leave(epoch);
            }
        }
    }

    #[test]
    fn no_block_is_used_when_it_is_free() -> Result {
        let mapping = Arc::pin_init(
            try_pin_init!(Mapping {
                in_flight <- InFlight::new(),
                block: Atomic::new(0),
                free: [const { Atomic::new(false) }; BLOCKS],
                used_when_free: Atomic::new(0),
                stop: Atomic::new(false),
            }? Error),
            GFP_KERNEL,
        )?;
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
            mapping.in_flight.quiesce();
            mapping.free[old].store(true, Relaxed);
            fsleep(Delta::from_micros(20));
        }
        mapping.stop.store(true, Relaxed);
        for thread in threads {
            thread.flush();
        }
        assert_eq!(mapping.used_when_free.load(Relaxed), 0);
        assert_eq!(mapping.in_flight.count(false), 0);
        assert_eq!(mapping.in_flight.count(true), 0);
        Ok(())
    }
}
