// SPDX-License-Identifier: GPL-2.0

//! The device that an image is on: copy-on-write, and with an eye on what is written where.

use std::{
    cell::{
        Cell,
        Ref,
        RefCell, //
    },
    collections::BTreeMap,
    rc::Rc,
};

use persistent_data::{
    block::{
        BlockData,
        BlockNr,
        Validator, //
    },
    block_manager::BlockManager,
    cached::{
        CachedBm,
        CachedReadGuard,
        CachedWriteGuard,
        Device, //
    },
    error::{
        Error,
        Result, //
    },
};

use crate::image::{
    Image,
    Kind, //
};

/// The errno of I/O that fails.
const EIO: i32 = 5;

/// What outlives the metadata that are open.
pub struct Store {
    image: RefCell<Image>,
    nr_blocks: BlockNr,
    /// How often the last commit uses each block; who is used, but for the superblock, may not be written to.
    protected: RefCell<Vec<u32>>,
    /// Whether the superblock was written since it was last asked for.
    committed: Cell<bool>,
    /// How many more reads, writes and flushes succeed before one fails.
    fault: Cell<Option<u32>>,
}

impl Store {
    /// A device with `extra` blocks beyond the image.
    pub fn new(image: Image, extra: BlockNr) -> Rc<Self> {
        Rc::new(Self {
            nr_blocks: image.base().nr_blocks() + extra,
            image: RefCell::new(image),
            protected: RefCell::default(),
            committed: Cell::new(false),
            fault: Cell::new(None),
        })
    }

    /// What is on the device.
    pub fn image(&self) -> Ref<'_, Image> {
        self.image.borrow()
    }

    /// From now on, no block with a count may be written to, but for the superblock.
    pub fn protect(&self, blocks: Vec<u32>) {
        *self.protected.borrow_mut() = blocks;
    }

    /// Whether the superblock was written since the last call.
    pub fn take_committed(&self) -> bool {
        self.committed.take()
    }

    /// Makes one I/O fail, after `after` more.
    pub fn fail(&self, after: Option<u32>) {
        self.fault.set(after);
    }

    fn start(&self) -> Result {
        match self.fault.get() {
            None => Ok(()),
            Some(0) => {
                self.fault.set(None);
                Err(Error::Io(EIO))
            }
            Some(n) => {
                self.fault.set(Some(n - 1));
                Ok(())
            }
        }
    }
}

/// A handle of a [`Store`], for a cache.
pub struct Disk(Rc<Store>);

impl Device for Disk {
    fn nr_blocks(&self) -> BlockNr {
        self.0.nr_blocks
    }

    fn read(&self, block: BlockNr, data: &mut BlockData) -> Result {
        assert!(block < self.0.nr_blocks, "read of block {block}");
        self.0.start()?;
        data.copy_from_slice(self.0.image.borrow().block(block));
        Ok(())
    }

    fn write(&self, block: BlockNr, data: &BlockData) -> Result {
        assert!(block < self.0.nr_blocks, "write of block {block}");
        let count = self.0.protected.borrow().get(block as usize).copied();
        assert!(
            block == 0 || count.unwrap_or(0) == 0,
            "block {block} is in use by the last commit, and written to"
        );
        self.0.start()?;
        // Beyond checksum and flags: `needs_check` alone is no commit.
        if block == 0 && self.0.image.borrow().block(0)[8..] != data[8..] {
            self.0.committed.set(true);
        }
        self.0.image.borrow_mut().write(block, Kind::Other, data);
        Ok(())
    }

    fn flush(&self) -> Result {
        self.0.start()
    }
}

/// How many blocks one operation may ask for.
pub const MAX_STEPS: u64 = 400_000;

/// A cache over a [`Store`] that counts what it is asked for.
pub struct Watched {
    cache: CachedBm<Disk>,
    steps: Cell<u64>,
}

impl Watched {
    /// An empty cache.
    pub fn new(store: &Rc<Store>) -> Self {
        let cache = CachedBm::over(Disk(store.clone()), usize::MAX).expect("memory");
        Self {
            cache,
            steps: Cell::new(0),
        }
    }

    /// A new operation begins. Gives how many blocks the last one asked for.
    pub fn begin(&self) -> u64 {
        self.steps.take()
    }

    fn step(&self) {
        let steps = self.steps.get() + 1;
        assert!(steps < MAX_STEPS, "an operation does not come to an end");
        self.steps.set(steps);
    }
}

impl BlockManager for Watched {
    type ReadGuard<'a> = CachedReadGuard<'a>;
    type WriteGuard<'a> = CachedWriteGuard<'a>;

    fn nr_blocks(&self) -> BlockNr {
        self.cache.nr_blocks()
    }

    fn read(&self, block: BlockNr, validator: &'static Validator) -> Result<CachedReadGuard<'_>> {
        self.step();
        self.cache.read(block, validator)
    }

    fn try_read(
        &self,
        block: BlockNr,
        validator: &'static Validator,
    ) -> Result<CachedReadGuard<'_>> {
        self.step();
        self.cache.try_read(block, validator)
    }

    fn read_raw(&self, block: BlockNr) -> Result<CachedReadGuard<'_>> {
        self.step();
        self.cache.read_raw(block)
    }

    fn write(&self, block: BlockNr, validator: &'static Validator) -> Result<CachedWriteGuard<'_>> {
        self.step();
        self.cache.write(block, validator)
    }

    fn write_zero(
        &self,
        block: BlockNr,
        validator: &'static Validator,
    ) -> Result<CachedWriteGuard<'_>> {
        self.step();
        self.cache.write_zero(block, validator)
    }

    fn prefetch(&self, block: BlockNr) {
        self.step();
        self.cache.prefetch(block);
    }

    fn flush(&self) -> Result {
        self.cache.flush()
    }

    fn flush_device(&self) -> Result {
        self.cache.flush_device()
    }

    fn reset(&mut self) {
        self.cache.reset();
    }

    fn is_read_only(&self) -> bool {
        self.cache.is_read_only()
    }

    fn set_read_only(&self, read_only: bool) {
        self.cache.set_read_only(read_only);
    }
}

/// Counts of some blocks.
pub type Counts = BTreeMap<BlockNr, u32>;
