// SPDX-License-Identifier: GPL-2.0

//! The bios on their way to the data device.
//!
//! A bio is sent to a data block because a mapping said so. Once the mapping is gone, the block may be
//! given to another volume, but not before all bios that may still use the old mapping have ended. So each
//! bio enters this set *before* it looks at a mapping and leaves when it has ended, and whoever wants to
//! reuse a block first removes the mapping and then waits for the bios that had entered by then.
//!
//! The set knows only two epochs, each with a count of its bios. [`InFlight::quiesce`] turns to the other
//! epoch and waits until the former one is empty; as it does so each time, the epoch it turns to is empty
//! or holds only bios that came in too late to be counted by the turn before.

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Full,
                Relaxed, //
            },
            Atomic, //
        },
        new_condvar,
        new_spinlock_irq,
        CondVar,
        SpinLockIrq, //
    }, //
};

/// Proof that a bio is in the set; given back by [`InFlight::leave`].
#[must_use = "the bio stays in flight until its epoch is given to `leave`"]
pub(crate) struct Epoch(usize);

/// The set of bios in flight.
///
/// Memory ordering: [`enter`](Self::enter) counts the bio and then looks at the epoch;
/// [`quiesce`](Self::quiesce) changes the epoch and then looks at the count. Both have a full barrier in
/// between, so either the bio sees the new epoch and tries again, or the count sees the bio. A bio that
/// enters the new epoch looks at the mapping afterwards, and so after the change that the caller of
/// `quiesce` had made before.
#[pin_data]
pub(crate) struct InFlight {
    epoch: Atomic<i32>,
    counts: [Atomic<i64>; 2],
    // Taken only to sleep and to wake; innermost of all locks.
    #[pin]
    sleepers: SpinLockIrq<()>,
    #[pin]
    drained: CondVar,
}

impl InFlight {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            epoch: Atomic::new(0),
            counts: [Atomic::new(0), Atomic::new(0)],
            sleepers <- new_spinlock_irq!((), "dm_thin::InFlight"),
            drained <- new_condvar!("dm_thin::InFlight"),
        })
    }

    fn current(&self) -> usize {
        usize::from(self.epoch.load(Relaxed) != 0)
    }

    /// Enters a bio; any context.
    #[inline]
    pub(crate) fn enter(&self) -> Epoch {
        loop {
            let epoch = self.current();
            self.counts[epoch].fetch_add(1, Full);
            if self.current() == epoch {
                return Epoch(epoch);
            }
            self.leave(Epoch(epoch));
        }
    }

    /// A bio has ended; any context.
    #[inline]
    pub(crate) fn leave(&self, Epoch(epoch): Epoch) {
        let before = self.counts[epoch].fetch_sub(1, Full);
        if before == 1 && self.current() != epoch {
            let _sleepers = self.sleepers.lock();
            self.drained.notify_all();
        }
    }

    /// Waits until all bios have left that entered before the call.
    ///
    /// Sleeps. At most one thread may be in here at a time: the pool's worker.
    pub(crate) fn quiesce(&self) {
        let old = self.current();
        self.epoch.xchg(i32::from(old == 0), Full);

        let mut sleepers = self.sleepers.lock();
        while self.counts[old].load(kernel::sync::atomic::ordering::Acquire) != 0 {
            self.drained.wait(&mut sleepers);
        }
    }
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_thin_in_flight)]
mod tests {
    use super::*;

    #[test]
    fn quiesce_waits_only_for_the_former_epoch() -> Result {
        let set = KBox::pin_init(InFlight::new(), GFP_KERNEL)?;
        let first = set.enter();
        assert_eq!(set.counts[first.0].load(Relaxed), 1);
        set.leave(first);
        set.quiesce();

        let second = set.enter();
        assert_eq!(second.0, 1);
        set.leave(second);
        set.quiesce();
        assert_eq!(set.current(), 0);
        Ok(())
    }
}
