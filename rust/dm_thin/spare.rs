// SPDX-License-Identifier: GPL-2.0

//! Pieces of memory that are kept for a time when there are no other ones.
//!
//! The worker is on the way of writing memory back: if it waited for memory, that might be for what waits for the
//! worker. So it takes what is spare. There is always a certain number of pieces, which go round: as long as none is
//! spare they are all in use, and whoever gives one back has the worker go on.

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
    /// Makes `count` pieces, which are there for good, with `make`.
    pub(crate) fn new(count: usize, make: fn(Flags) -> Result<T>) -> Result<Self> {
        let mut pieces = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            pieces.push(make(GFP_KERNEL)?, GFP_KERNEL)?;
        }
        Ok(Self { pieces, make })
    }

    /// Takes a piece, or makes one if that is possible without waiting. `None` only while all that are kept are in use.
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
        let mut spare = Spare::new(2, make)?;
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
    fn more_are_made_but_not_kept() -> Result {
        fn make(flags: Flags) -> Result<KBox<u32>> {
            Ok(KBox::new(7, flags)?)
        }
        let mut spare = Spare::new(1, make)?;
        let (a, b) = (spare.take(), spare.take());
        assert!(a.is_some() && b.is_some());
        [a, b]
            .into_iter()
            .flatten()
            .for_each(|piece| spare.give(piece));
        assert_eq!(spare.pieces.len(), 1);
        Ok(())
    }
}
