// SPDX-License-Identifier: GPL-2.0

//! Cached access to the blocks of a device.

use core::ops::{
    Deref,
    DerefMut, //
};

use crate::{
    block::{
        BlockData,
        BlockNr,
        BlockRange,
        Validator, //
    },
    error::Result,
};

/// A cache of a device's blocks, which hands out guards.
///
/// A block has any number of read guards or one write guard. Guards never wait for each other: as the
/// caller of this library serialises changes with all else, two conflicting guards of one block can only
/// come from a structure that names the block twice, and the later one gets
/// [`Error::Conflict`](crate::Error::Conflict).
///
/// A block's first read checks it with the validator; a later read or write with another one gets
/// [`Error::WrongValidator`](crate::Error::WrongValidator). Before a block is written to the device it is
/// prepared by the validator of its last guard.
pub trait BlockManager {
    /// Shared access to a block.
    type ReadGuard<'a>: Guard
    where
        Self: 'a;
    /// Exclusive access to a block, which will be written at the next flush or earlier.
    type WriteGuard<'a>: Guard + DerefMut
    where
        Self: 'a;

    /// The size of the device in blocks.
    fn nr_blocks(&self) -> BlockNr;

    /// Reads a block, waits for the device if need be.
    fn read(&self, block: BlockNr, validator: &'static Validator) -> Result<Self::ReadGuard<'_>>;

    /// As [`read`](Self::read), but gives [`Error::WouldBlock`](crate::Error::WouldBlock) instead of
    /// waiting for the device.
    fn try_read(
        &self,
        block: BlockNr,
        validator: &'static Validator,
    ) -> Result<Self::ReadGuard<'_>>;

    /// Reads a block without any check of its content, and without remembering a validator for it.
    fn read_raw(&self, block: BlockNr) -> Result<Self::ReadGuard<'_>>;

    /// Reads a block in order to change it.
    ///
    /// Gives [`Error::ReadOnly`](crate::Error::ReadOnly) if the block manager is read-only.
    fn write(&self, block: BlockNr, validator: &'static Validator) -> Result<Self::WriteGuard<'_>>;

    /// Zeroes a block in order to fill it; what the device holds is not read.
    ///
    /// Gives [`Error::ReadOnly`](crate::Error::ReadOnly) if the block manager is read-only.
    fn write_zero(
        &self,
        block: BlockNr,
        validator: &'static Validator,
    ) -> Result<Self::WriteGuard<'_>>;

    /// As [`write_zero`](Self::write_zero), but fills the block with `data`.
    fn write_copy(
        &self,
        block: BlockNr,
        validator: &'static Validator,
        data: &BlockData,
    ) -> Result<Self::WriteGuard<'_>> {
        let mut guard = self.write_zero(block, validator)?;
        guard.copy_from_slice(data);
        Ok(guard)
    }

    /// Starts to read a block that will be wanted soon; does nothing where that is not possible.
    fn prefetch(&self, block: BlockNr);

    /// As [`prefetch`](Self::prefetch), for a run of blocks.
    fn prefetch_run(&self, blocks: BlockRange) {
        for block in blocks {
            self.prefetch(block);
        }
    }

    /// Starts to write all changed blocks; does nothing where that is not possible. Must come before a
    /// [`flush`](Self::flush) during which blocks may be read.
    fn start_writing(&mut self) {}

    /// Writes all changed blocks and flushes the device. Blocks may be read meanwhile, but not changed.
    ///
    /// Also tells of errors of earlier writes. It tells of an error once: what could not be written may be
    /// lost after that, also from the cache, and later flushes may succeed. So only a [`reset`](Self::reset)
    /// helps.
    ///
    /// Gives [`Error::ReadOnly`](crate::Error::ReadOnly), and does nothing, if the block manager is read-only.
    fn flush(&self) -> Result;

    /// Flushes the device, but writes no block: for what it showed before anything was changed. Works if the block manager
    /// is read-only, too.
    fn flush_device(&self) -> Result;

    /// Writes the superblock that `superblock` guards after all other blocks have become stable: the guard
    /// is let go, and the device flushed.
    fn commit_superblock<'a>(&'a self, superblock: Self::WriteGuard<'a>) -> Result {
        drop(superblock);
        self.flush()
    }

    /// Forgets all cached blocks, so that what is read next is what the device holds.
    ///
    /// This gives a transaction up. It does not matter whether changed blocks are written before they are
    /// forgotten: nothing that is committed refers to them.
    fn reset(&mut self);

    /// Whether changes are refused.
    fn is_read_only(&self) -> bool;

    /// Refuses or allows changes.
    fn set_read_only(&self, read_only: bool);
}

/// A block that is held.
pub trait Guard: Deref<Target = BlockData> {
    /// Where the block lives.
    fn location(&self) -> BlockNr;
}

/// A read guard of block manager `B`.
pub type ReadGuard<'b, B> = <B as BlockManager>::ReadGuard<'b>;

/// A write guard of block manager `B`.
pub type WriteGuard<'b, B> = <B as BlockManager>::WriteGuard<'b>;

/// Where look-ups get their blocks from: a block manager, or a view of one that never waits.
///
/// Implemented by `&B` for each block manager, and by [`NonBlocking`](crate::transaction_manager::NonBlocking).
pub trait Reader<'b>: Copy {
    /// The block manager underneath.
    type Bm: BlockManager + 'b;

    /// Reads a block.
    fn read(self, block: BlockNr, validator: &'static Validator)
        -> Result<ReadGuard<'b, Self::Bm>>;

    /// Starts to read a block that will be wanted soon.
    fn prefetch(self, block: BlockNr);
}

impl<'b, B: BlockManager> Reader<'b> for &'b B {
    type Bm = B;

    fn read(self, block: BlockNr, validator: &'static Validator) -> Result<ReadGuard<'b, B>> {
        BlockManager::read(self, block, validator)
    }

    fn prefetch(self, block: BlockNr) {
        BlockManager::prefetch(self, block)
    }
}
