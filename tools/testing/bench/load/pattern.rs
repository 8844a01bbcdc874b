// SPDX-License-Identifier: GPL-2.0

//! Which slots a thread uses, in which order.

use crate::{
    permutation::{
        mix,
        Permutation, //
    },
    settings::{
        Order,
        Settings, //
    },
};

/// The slots that one thread uses, without end.
pub(crate) enum Pattern {
    /// From `begin` to `end`, and over again.
    Seq { begin: u64, end: u64, next: u64 },
    /// Any of `slots`.
    Random { slots: u64, state: u64 },
    /// Those that come out for `next` and what follows.
    Shuffle { all: Permutation, next: u64 },
}

/// The part of `n` things that is for the thread `i` of `threads`: from where, and up to where.
pub(crate) fn part(n: u64, i: usize, threads: usize) -> (u64, u64) {
    let threads = threads.max(1) as u64;
    // That is `n * i / threads`, without the large product: the quotient is not above `n`, the rest below `threads`.
    let (all, rest) = (n / threads, n % threads);
    let at = |i: usize| {
        let i = (i as u64).min(threads);
        all * i + rest * i / threads
    };
    (at(i), at(i.saturating_add(1)))
}

impl Pattern {
    /// For the thread `i`, if there are `slots`; none if that is too few.
    pub(crate) fn new(settings: &Settings, slots: u64, i: usize) -> Option<Self> {
        let threads = settings.threads;
        match settings.order {
            Order::Seq => {
                let (begin, end) = part(slots, i, threads);
                (begin < end).then_some(Self::Seq {
                    begin,
                    end,
                    next: begin,
                })
            }
            Order::Random => (slots != 0).then_some(Self::Random {
                slots,
                state: mix(settings.seed.wrapping_add(i as u64)),
            }),
            Order::Shuffle => (settings.count <= slots).then_some(Self::Shuffle {
                all: Permutation::new(slots, settings.seed),
                next: part(settings.count, i, threads).0,
            }),
        }
    }

    /// The next slot.
    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        match self {
            Self::Seq { begin, end, next } => {
                let slot = *next;
                *next = slot.wrapping_add(1);
                if *next == *end {
                    *next = *begin;
                }
                slot
            }
            Self::Random { slots, state } => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                // A fraction of 64 bits, which is below one, of `slots`.
                ((u128::from(mix(*state)) * u128::from(*slots)) >> 64) as u64
            }
            Self::Shuffle { all, next } => {
                let slot = all.at(*next);
                *next = next.wrapping_add(1);
                slot
            }
        }
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_load_pattern)]
mod tests {
    use super::*;
    use crate::settings::Op;
    use kernel::prelude::*;

    fn settings(order: Order, count: u64, threads: usize) -> Settings {
        Settings {
            op: Op::Write,
            order,
            bytes: 4096,
            count,
            depth: 1,
            threads,
            fua_every: 0,
            seed: 11,
            start: 0,
            length: None,
            stride: 4096,
            gap_us: 0,
            cpu: None,
            latency: true,
        }
    }

    /// How often each slot is used by all threads.
    fn uses(settings: &Settings, slots: u64) -> Result<KVec<u32>> {
        let mut uses = KVec::from_elem(0, slots as usize, GFP_KERNEL)?;
        for i in 0..settings.threads {
            let mut pattern = Pattern::new(settings, slots, i).ok_or(EINVAL)?;
            let (from, to) = part(settings.count, i, settings.threads);
            for _ in from..to {
                *uses.get_mut(pattern.next() as usize).ok_or(ERANGE)? += 1;
            }
        }
        Ok(uses)
    }

    #[test]
    fn parts_make_the_whole() {
        for n in [0, 1, 5, 64, 1000] {
            for threads in 1..8 {
                let mut at = 0;
                for i in 0..threads {
                    let (from, to) = part(n, i, threads);
                    assert_eq!(from, at);
                    assert!(to - from <= n / threads as u64 + 1);
                    at = to;
                }
                assert_eq!(at, n);
            }
        }
    }

    #[test]
    fn seq_uses_all_in_turn() -> Result {
        for threads in 1..4 {
            assert!(uses(&settings(Order::Seq, 120, threads), 60)?
                .iter()
                .all(|&n| n == 2));
        }
        let mut pattern = Pattern::new(&settings(Order::Seq, 4, 2), 5, 1).ok_or(EINVAL)?;
        assert!([(); 4].map(|()| pattern.next()) == [2, 3, 4, 2]);
        assert!(Pattern::new(&settings(Order::Seq, 4, 2), 1, 0).is_none());
        Ok(())
    }

    #[test]
    fn shuffle_uses_each_once() -> Result {
        for threads in 1..4 {
            assert!(uses(&settings(Order::Shuffle, 1000, threads), 1000)?
                .iter()
                .all(|&n| n == 1));
            let some = uses(&settings(Order::Shuffle, 400, threads), 1000)?;
            assert!(some.iter().all(|&n| n <= 1));
            assert_eq!(some.iter().sum::<u32>(), 400);
        }
        assert!(Pattern::new(&settings(Order::Shuffle, 11, 1), 10, 0).is_none());
        Ok(())
    }

    #[test]
    fn random_is_even() -> Result {
        let uses = uses(&settings(Order::Random, 100_000, 3), 100)?;
        assert!(uses.iter().all(|n| (800..1200).contains(n)));
        Ok(())
    }

    #[test]
    fn threads_differ() -> Result {
        let settings = settings(Order::Random, 0, 2);
        let mut a = Pattern::new(&settings, 1 << 40, 0).ok_or(EINVAL)?;
        let mut b = Pattern::new(&settings, 1 << 40, 1).ok_or(EINVAL)?;
        for _ in 0..100 {
            assert!(a.next() != b.next());
        }
        Ok(())
    }
}
