// SPDX-License-Identifier: GPL-2.0

//! Pieces of memory that are kept for a time when there are no other ones.
//!
//! The worker is on the way of writing memory back: if it waited for memory, that might be for what waits for the
//! worker. So it takes what is spare. There is always a certain number of pieces, which go round: as long as none is
//! spare they are all in use, and whoever gives one back has the worker go on. Some more are kept once they were needed.

use kernel::{
    alloc::{
        flags::{
            __GFP_NOWARN, //
            GFP_NOWAIT,
        },
        Flags, //
    },
    prelude::*, //
};

/// Pieces that are spare.
pub(crate) struct Spare<T> {
    /// Has room for all that are kept.
    pieces: KVec<T>,
    make: fn(Flags) -> Result<T>,
}

impl<T> Spare<T> {
    /// Makes the `least` number of pieces, which are there for good, with `make`. When more are needed, up to `most` are
    /// kept for the next time.
    pub(crate) fn new(least: usize, most: usize, make: fn(Flags) -> Result<T>) -> Result<Self> {
        let mut pieces = KVec::with_capacity(most, GFP_KERNEL)?;
        for _ in 0..least {
            pieces.push(make(GFP_KERNEL)?, GFP_KERNEL)?;
        }
        Ok(Self { pieces, make })
    }

    /// Takes a piece, or makes one if that is possible without waiting. `None` only while all that there are for
    /// good are in use.
    pub(crate) fn take(&mut self) -> Option<T> {
        let no_wait = GFP_NOWAIT | __GFP_NOWARN;
        self.pieces.pop().or_else(|| (self.make)(no_wait).ok())
    }

    /// Gives a piece back.
    pub(crate) fn give(&mut self, piece: T) {
        // What is beyond those that are kept is freed.
        let _ = self.pieces.push_within_capacity(piece);
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_thin_spare)]
mod tests {
    use super::*;

    #[test]
    fn pieces_go_round_where_there_is_no_memory() -> Result {
        fn make(flags: Flags) -> Result<KBox<u32>> {
            match flags == GFP_KERNEL {
                true => Ok(KBox::new(7, flags)?),
                false => Err(ENOMEM),
            }
        }
        let mut spare = Spare::new(2, 2, make)?;
        for _ in 0..3 {
            let (a, b) = (spare.take(), spare.take());
            assert!(a.is_some() && b.is_some() && spare.take().is_none());
            [a, b]
                .into_iter()
                .flatten()
                .for_each(|piece| spare.give(piece));
        }
        Ok(())
    }

    #[test]
    fn more_are_made_and_some_of_them_kept() -> Result {
        fn make(flags: Flags) -> Result<KBox<u32>> {
            Ok(KBox::new(7, flags)?)
        }
        let mut spare = Spare::new(1, 2, make)?;
        assert_eq!(spare.pieces.len(), 1);
        let (a, b, c) = (spare.take(), spare.take(), spare.take());
        assert!(a.is_some() && b.is_some() && c.is_some());
        [a, b, c]
            .into_iter()
            .flatten()
            .for_each(|piece| spare.give(piece));
        assert_eq!(spare.pieces.len(), 2);
        Ok(())
    }
}
