// SPDX-License-Identifier: GPL-2.0

//! The blocks of a metadata device, cached by dm-bufio.

use core::ops::{
    Deref,
    DerefMut, //
};

use dm::{
    bufio::{
        self,
        Tag, //
    },
    Dev, //
};
use kernel::{
    prelude::*,
    sync::atomic::{
        ordering::Relaxed,
        AtomicFlag, //
    }, //
};
use persistent_data::{
    block::{
        BlockData,
        BlockNr,
        BlockRange,
        Validator, //
    },
    block_manager::{
        BlockManager,
        Guard, //
    },
    Error, //
};
use thin_metadata::MAX_HELD;

type Result<T = ()> = persistent_data::Result<T>;

/// What a cached block remembers: what it was checked as.
#[derive(Clone, Copy)]
struct Kind(&'static Validator);

impl Tag<{ persistent_data::block::BLOCK_SIZE }> for Kind {
    fn prepare_for_write(self, block: u64, data: &mut BlockData) {
        (self.0.prepare)(data, block);
    }
}

/// A block manager over dm-bufio.
pub(crate) struct BufioManager {
    client: bufio::Client<Kind>,
    read_only: AtomicFlag,
}

/// A block held for reading.
pub(crate) struct ReadGuard<'a>(bufio::ReadGuard<'a, Kind>);

/// A block held for writing.
pub(crate) struct WriteGuard<'a>(bufio::WriteGuard<'a, Kind>);

impl BufioManager {
    pub(crate) fn new(dev: &Dev) -> Result<Self> {
        Ok(Self {
            // As many are kept in reserve, so that a change never waits for memory that it holds itself.
            client: bufio::Client::new(dev, MAX_HELD).map_err(io_error)?,
            read_only: AtomicFlag::new(false),
        })
    }

    fn check_bounds(&self, block: BlockNr) -> Result {
        match block < self.nr_blocks() {
            true => Ok(()),
            false => Err(Error::OutOfBounds(block)),
        }
    }

    fn check_writable(&self, block: BlockNr) -> Result {
        self.check_bounds(block)?;
        match self.is_read_only() {
            true => Err(Error::ReadOnly),
            false => Ok(()),
        }
    }
}

/// What an error of dm-bufio means that is not about one block.
fn io_error(e: kernel::error::Error) -> Error {
    match e {
        ENOMEM => Error::NoMemory,
        e => Error::Io(-e.to_errno()),
    }
}

/// What an error of dm-bufio means for `block`.
fn block_error(block: BlockNr, e: kernel::error::Error) -> Error {
    match e {
        EDEADLK => Error::Conflict(block),
        e => io_error(e),
    }
}

/// Checks a block that was read, unless it was checked before.
fn check<'a>(
    guard: bufio::ReadGuard<'a, Kind>,
    validator: &'static Validator,
) -> Result<ReadGuard<'a>> {
    let block = guard.block();
    match guard.tag() {
        Some(Kind(known)) if known.is(validator) => {}
        Some(_) => return Err(Error::WrongValidator(block)),
        None => {
            (validator.check)(&guard, block)?;
            // Another reader may have checked it at the same time, and may be about to say so: there is no tag then.
            if guard.set_tag(Kind(validator)).is_err()
                && matches!(guard.tag(), Some(Kind(known)) if !known.is(validator))
            {
                return Err(Error::WrongValidator(block));
            }
        }
    }
    Ok(ReadGuard(guard))
}

impl BlockManager for BufioManager {
    type ReadGuard<'a> = ReadGuard<'a>;
    type WriteGuard<'a> = WriteGuard<'a>;

    fn nr_blocks(&self) -> BlockNr {
        self.client.device_size()
    }

    fn read(&self, block: BlockNr, validator: &'static Validator) -> Result<ReadGuard<'_>> {
        self.check_bounds(block)?;
        let guard = self.client.read(block).map_err(|e| block_error(block, e))?;
        check(guard, validator)
    }

    fn try_read(&self, block: BlockNr, validator: &'static Validator) -> Result<ReadGuard<'_>> {
        self.check_bounds(block)?;
        match self.client.get(block).map_err(|e| block_error(block, e))? {
            Some(guard) => check(guard, validator),
            None => Err(Error::WouldBlock),
        }
    }

    fn read_raw(&self, block: BlockNr) -> Result<ReadGuard<'_>> {
        self.check_bounds(block)?;
        self.client
            .read(block)
            .map(ReadGuard)
            .map_err(|e| block_error(block, e))
    }

    fn write(&self, block: BlockNr, validator: &'static Validator) -> Result<WriteGuard<'_>> {
        self.check_writable(block)?;
        let mut guard = self
            .client
            .write(block)
            .map_err(|e| block_error(block, e))?;
        match guard.tag() {
            Some(Kind(known)) if known.is(validator) => {}
            Some(_) => return Err(Error::WrongValidator(block)),
            None => {
                // If this fails the block counts as changed, and what is there already is written again.
                (validator.check)(&guard, block)?;
                guard.set_tag(Some(Kind(validator)));
            }
        }
        Ok(WriteGuard(guard))
    }

    fn write_zero(&self, block: BlockNr, validator: &'static Validator) -> Result<WriteGuard<'_>> {
        self.check_writable(block)?;
        let mut guard = self
            .client
            .zeroed(block)
            .map_err(|e| block_error(block, e))?;
        guard.set_tag(Some(Kind(validator)));
        Ok(WriteGuard(guard))
    }

    fn write_copy(
        &self,
        block: BlockNr,
        validator: &'static Validator,
        data: &BlockData,
    ) -> Result<WriteGuard<'_>> {
        self.check_writable(block)?;
        let mut guard = self
            .client
            .filled(block, data)
            .map_err(|e| block_error(block, e))?;
        guard.set_tag(Some(Kind(validator)));
        Ok(WriteGuard(guard))
    }

    fn prefetch(&self, block: BlockNr) {
        if self.check_bounds(block).is_ok() {
            self.client.prefetch(block, 1);
        }
    }

    fn prefetch_run(&self, blocks: BlockRange) {
        let len = blocks
            .end
            .min(self.nr_blocks())
            .saturating_sub(blocks.start);
        if let Ok(len) = u32::try_from(len) {
            self.client.prefetch(blocks.start, len);
        }
    }

    fn start_writing(&mut self) {
        if !self.is_read_only() {
            self.client.start_writing();
        }
    }

    fn flush(&self) -> Result {
        match self.is_read_only() {
            true => Err(Error::ReadOnly),
            false => self.client.write_dirty_buffers().map_err(io_error),
        }
    }

    fn flush_device(&self) -> Result {
        self.client.issue_flush().map_err(io_error)
    }

    fn reset(&mut self) {
        self.client.reset();
    }

    fn is_read_only(&self) -> bool {
        self.read_only.load(Relaxed)
    }

    fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Relaxed);
    }
}

impl Guard for ReadGuard<'_> {
    fn location(&self) -> BlockNr {
        self.0.block()
    }
}

impl Deref for ReadGuard<'_> {
    type Target = BlockData;

    fn deref(&self) -> &BlockData {
        &self.0
    }
}

impl Guard for WriteGuard<'_> {
    fn location(&self) -> BlockNr {
        self.0.block()
    }
}

impl Deref for WriteGuard<'_> {
    type Target = BlockData;

    fn deref(&self) -> &BlockData {
        &self.0
    }
}

impl DerefMut for WriteGuard<'_> {
    fn deref_mut(&mut self) -> &mut BlockData {
        &mut self.0
    }
}
