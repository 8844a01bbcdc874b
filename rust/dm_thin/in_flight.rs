// SPDX-License-Identifier: GPL-2.0

//! The bios on their way to the data device.
//!
//! A bio is sent to a data block because a mapping said so. Once the mapping is gone, the block may be
//! given to another volume, but not before all bios that may still use the old mapping have ended. So each
//! bio enters this set *before* it looks at a mapping and leaves when it has ended, and whoever wants to
//! reuse a block first removes the mapping and then waits for the bios that had entered by then. Waiting is not
//! sleeping: who leaves last says so.
//!
//! The set knows only two epochs. [`InFlight::turn`] turns to the other epoch; the former one is
//! [drained](InFlight::is_drained) when all of its bios have left, and only then may the next turn come. Each CPU
//! counts on its own how many bios entered each epoch there and how many left, maybe others, as bios end anywhere:
//! only the sums over all CPUs mean something, and they may wrap.
//!
//! # Why a bio that had entered is waited for
//!
//! [`enter`](InFlight::enter) counts the bio and then looks whether the epoch is still the same;
//! [`turn`](InFlight::turn) changes the epoch, and whoever turns sums after that. Both have a full barrier in between,
//! so either the bio sees the new epoch, and takes itself back, or the sum of those that entered has the bio.
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
//! A bio that is not waited for has seen an epoch that began with this turn or a later one when it looked for the
//! second time. That look is an acquire, so the bio sees everything that was done before the turn: the mapping is
//! gone. It may have counted itself long after the first look, when both epochs had passed, but the second look
//! tells where it belongs.
//!
//! # Why it is told that all have left
//!
//! `leave` counts and then looks at the epoch, with a full barrier in between. If it does not see that its epoch has
//! passed, the sums that are taken after the turn have it. If it does, it sums itself, after it has counted itself and
//! a full barrier. Of two that leave at once, at least one has the other in its sum. So the last one finds the epoch
//! drained, and tells. A bio that takes itself back leaves like any other, and may be the last one.
//!
//! What is told is that it is worth a look: it may be told twice, or of an epoch that was seen to be drained already.
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
        barrier::smp_mb, //
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
#[repr(align(64))]
pub(crate) struct InFlight {
    epoch: AtomicFlag,
    counts: PerCpu<Counts>,
}

impl InFlight {
    /// ENOMEM if there is no memory.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            epoch: AtomicFlag::new(false),
            counts: PerCpu::new(Counts::new)?,
        })
    }

    /// Enters a bio; any context. `drained` is called if the epoch that has passed may be drained.
    #[inline]
    pub(crate) fn enter(&self, drained: impl Fn()) -> Epoch {
        loop {
            let epoch = self.epoch.load(Relaxed);
            self.counts.here().entered[usize::from(epoch)].fetch_add(1, Full);
            if self.epoch.load(Acquire) == epoch {
                return Epoch(epoch);
            }
            self.leave(Epoch(epoch), &drained);
        }
    }

    /// A bio has ended; any context, and any CPU. `drained` is called if the epoch that has passed may be drained.
    #[inline]
    pub(crate) fn leave(&self, Epoch(epoch): Epoch, drained: impl Fn()) {
        self.counts.here().left[usize::from(epoch)].fetch_add(1, Full);
        if self.epoch.load(Relaxed) != epoch && self.has_drained(epoch) {
            drained();
        }
    }

    /// Whether all bios have left that entered `epoch`, which has passed.
    #[cold]
    fn has_drained(&self, epoch: bool) -> bool {
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

    /// Begins the other epoch.
    ///
    /// One thread may turn, and only when the former epoch is [drained](Self::is_drained).
    pub(crate) fn turn(&self) {
        let former = self.epoch.load(Relaxed);
        self.epoch.xchg(!former, Full);
    }

    /// Whether all bios have left that had entered before the last turn; for the thread that turns.
    ///
    /// If not, the `drained` of one that enters or leaves will be called when they have.
    pub(crate) fn is_drained(&self) -> bool {
        self.has_drained(!self.epoch.load(Relaxed))
    }
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_thin_in_flight)]
mod tests {
    use super::*;

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

    fn nobody() {}

    #[test]
    fn only_the_former_epoch_is_waited_for() -> Result {
        let set = InFlight::new()?;
        let told = Atomic::new(0usize);
        let tell = || {
            told.fetch_add(1, Relaxed);
        };
        let first = set.enter(nobody);
        assert!(!first.0);
        assert_eq!(set.count(false), 1);
        set.turn();
        assert!(!set.is_drained());

        let second = set.enter(nobody);
        assert!(second.0);
        assert_eq!(set.count(true), 1);
        let third = set.enter(nobody);
        set.leave(third, tell);
        assert!(!set.is_drained());
        assert_eq!(told.load(Relaxed), 0);
        set.leave(first, tell);
        assert!(set.is_drained());
        assert_eq!(told.load(Relaxed), 1);

        set.turn();
        assert!(!set.is_drained());
        set.leave(second, tell);
        assert!(set.is_drained());
        assert_eq!(told.load(Relaxed), 2);
        assert!(!set.epoch.load(Relaxed));
        Ok(())
    }

    #[test]
    fn only_the_last_one_tells() -> Result {
        let set = InFlight::new()?;
        let told = Atomic::new(0usize);
        let tell = || {
            told.fetch_add(1, Relaxed);
        };
        let (first, second) = (set.enter(nobody), set.enter(nobody));
        set.turn();
        set.leave(first, tell);
        assert_eq!(told.load(Relaxed), 0);
        set.leave(second, tell);
        assert_eq!(told.load(Relaxed), 1);
        Ok(())
    }

    /// As a number that is counted for long does.
    #[test]
    fn counts_wrap() -> Result {
        let set = InFlight::new()?;
        for counts in set.counts.iter() {
            counts.entered[0].store(usize::MAX, Relaxed);
            counts.left[0].store(usize::MAX, Relaxed);
        }
        let first = set.enter(nobody);
        let second = set.enter(nobody);
        assert_eq!(set.count(false), 2);
        set.leave(first, nobody);
        set.turn();
        assert!(!set.is_drained());
        set.leave(second, nobody);
        assert!(set.is_drained());
        Ok(())
    }
}
