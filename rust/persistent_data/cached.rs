// SPDX-License-Identifier: GPL-2.0

//! A block manager for user space: a write-back cache over any device.
//!
//! Each block has a [`Mutex`] around what the cache knows of it, held only for moments, and an [`RwLock`]
//! around its content, held by guards. Nobody waits for the latter: a guard that cannot be had at once is a
//! conflict. The mutex is taken before the lock.

use std::{
    collections::{
        BTreeSet,
        VecDeque, //
    },
    ops::{
        Deref,
        DerefMut, //
    },
    sync::{
        atomic::{
            AtomicBool,
            AtomicUsize,
            Ordering, //
        },
        Mutex,
        MutexGuard,
        OnceLock,
        PoisonError,
        RwLock,
        RwLockReadGuard,
        RwLockWriteGuard,
        TryLockError, //
    },
};

use crate::{
    block::{
        BlockData,
        BlockNr,
        Validator,
        BLOCK_SIZE, //
    },
    block_manager::{
        BlockManager,
        Guard, //
    },
    error::{
        Error,
        Result, //
    },
};

#[cfg(test)]
mod tests;

/// Where blocks are kept.
pub trait Device {
    /// Its size in blocks.
    fn nr_blocks(&self) -> BlockNr;

    /// Reads a block.
    fn read(&self, block: BlockNr, data: &mut BlockData) -> Result;

    /// Writes a block, which becomes stable with the next flush or earlier.
    fn write(&self, block: BlockNr, data: &BlockData) -> Result;

    /// Makes all that was written stable.
    fn flush(&self) -> Result;
}

/// What an unused block of the cache holds.
static ZEROES: BlockData = [0; BLOCK_SIZE];

/// The content of a block; `None` when it is not in the cache.
type Content = Option<Box<BlockData>>;

#[derive(Default)]
struct State {
    /// What the content was checked as, if it was.
    validator: Option<&'static Validator>,
    /// Whether the content differs from the device's.
    dirty: bool,
}

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    content: RwLock<Content>,
}

impl Slot {
    fn read(&self, block: BlockNr) -> Result<RwLockReadGuard<'_, Content>> {
        match self.content.try_read() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(e)) => Ok(e.into_inner()),
            Err(TryLockError::WouldBlock) => Err(Error::Conflict(block)),
        }
    }

    fn write(&self, block: BlockNr) -> Result<RwLockWriteGuard<'_, Content>> {
        match self.content.try_write() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(e)) => Ok(e.into_inner()),
            Err(TryLockError::WouldBlock) => Err(Error::Conflict(block)),
        }
    }
}

/// Locks a mutex, also one that somebody panicked with: a failed test must not hide what failed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A write-back cache over a device.
pub struct CachedBm<D> {
    device: D,
    slots: Vec<OnceLock<Box<Slot>>>,
    dirty: Mutex<BTreeSet<BlockNr>>,
    /// The blocks in the cache, the oldest first, each once or more.
    loaded: Mutex<VecDeque<BlockNr>>,
    /// How many blocks the cache tries to stay below.
    limit: usize,
    /// What a write met that no flush has told of.
    write_error: Mutex<Option<Error>>,
    read_only: AtomicBool,
    /// How many guards there are, and the most that there were at a time.
    held: AtomicUsize,
    most_held: AtomicUsize,
}

impl<D: Device> CachedBm<D> {
    /// Forgets all blocks that are not held, changed or not.
    pub fn forget_all(&self) {
        let loaded = std::mem::take(&mut *lock(&self.loaded));
        for block in loaded {
            if !self.evict(block, true) {
                lock(&self.loaded).push_back(block);
            }
        }
    }

    /// An empty cache over `device`, which drops clean blocks when it holds more than `limit`.
    pub fn over(device: D, limit: usize) -> Result<Self> {
        let mut bm = Self {
            device,
            slots: Vec::new(),
            dirty: Mutex::new(BTreeSet::new()),
            loaded: Mutex::new(VecDeque::new()),
            limit,
            write_error: Mutex::new(None),
            read_only: AtomicBool::new(false),
            held: AtomicUsize::new(0),
            most_held: AtomicUsize::new(0),
        };
        bm.resize()?;
        Ok(bm)
    }

    /// The most blocks that were held at a time since this was last asked for.
    pub fn take_most_held(&self) -> usize {
        self.most_held
            .swap(self.held.load(Ordering::Relaxed), Ordering::Relaxed)
    }

    /// Counts a guard as long as the result exists.
    fn hold(&self) -> Held<'_> {
        let held = self.held.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_held.fetch_max(held, Ordering::Relaxed);
        Held(&self.held)
    }

    /// The device underneath.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device underneath; [`resize`](Self::resize) must follow if its size changes.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Takes notice of a new size of the device.
    pub fn resize(&mut self) -> Result {
        let n = usize::try_from(self.device.nr_blocks()).map_err(|_| Error::Invalid)?;
        let extra = n.saturating_sub(self.slots.len());
        self.slots
            .try_reserve_exact(extra)
            .map_err(|_| Error::NoMemory)?;
        self.slots.resize_with(n, OnceLock::new);
        Ok(())
    }

    /// Forgets all blocks that are neither changed nor held, so that they are read and checked anew.
    pub fn drop_cache(&self) {
        let loaded = std::mem::take(&mut *lock(&self.loaded));
        for block in loaded {
            if !self.evict(block, false) {
                lock(&self.loaded).push_back(block);
            }
        }
    }

    /// The blocks that differ from what the device holds.
    pub fn dirty_blocks(&self) -> Vec<BlockNr> {
        lock(&self.dirty).iter().copied().collect()
    }

    /// What would be written for a block if it were flushed now.
    pub fn sealed(&self, block: BlockNr) -> Result<Box<BlockData>> {
        let slot = self.slot(block)?;
        let state = lock(&slot.state);
        let mut data = match &*slot.read(block)? {
            Some(data) => data.clone(),
            None => {
                let mut data = Box::new(ZEROES);
                self.device.read(block, &mut data)?;
                return Ok(data);
            }
        };
        // What was written is as it was changed, while a copy went to the device.
        if let Some(validator) = state.validator {
            (validator.prepare)(&mut data, block);
        }
        Ok(data)
    }

    /// Writes those changed blocks for which `choose` is true, without a flush, as a cache may do at any time. The next
    /// flush tells of an error; until then, what could not be written stays in the cache.
    pub fn write_back(&self, mut choose: impl FnMut(BlockNr) -> bool) {
        if self.is_read_only() {
            return;
        }
        let blocks = self.dirty_blocks();
        if let Err(e) = self.write_blocks(blocks.into_iter().filter(|b| choose(*b)), true) {
            lock(&self.write_error).get_or_insert(e);
        }
    }

    /// Writes changed blocks, all of them whatever happens.
    fn write_blocks(&self, blocks: impl Iterator<Item = BlockNr>, keep_failed: bool) -> Result {
        let mut result = Ok(());
        for block in blocks {
            let slot = self.slot(block)?;
            let mut state = lock(&slot.state);
            // Others may be reading it, so a copy is made ready for the device.
            if let Some(data) = slot.read(block)?.as_deref() {
                let mut data = *data;
                if let Some(validator) = state.validator {
                    (validator.prepare)(&mut data, block);
                }
                let written = self.device.write(block, &data);
                result = result.and(written);
                if written.is_err() && keep_failed {
                    continue;
                }
            }
            state.dirty = false;
            lock(&self.dirty).remove(&block);
        }
        result
    }

    fn slot(&self, block: BlockNr) -> Result<&Slot> {
        let slot = usize::try_from(block)
            .ok()
            .and_then(|i| self.slots.get(i))
            .ok_or(Error::OutOfBounds(block))?;
        Ok(slot.get_or_init(Default::default))
    }

    /// Drops a block from the cache if it is not held, and either not changed or `force` is set.
    fn evict(&self, block: BlockNr, force: bool) -> bool {
        let Ok(slot) = self.slot(block) else {
            return true;
        };
        let mut state = lock(&slot.state);
        if state.dirty && !force {
            return false;
        }
        let Ok(mut content) = slot.write(block) else {
            return false;
        };
        *content = None;
        *state = State::default();
        lock(&self.dirty).remove(&block);
        true
    }

    fn note_loaded(&self, block: BlockNr) {
        let victims: Vec<BlockNr> = {
            let mut loaded = lock(&self.loaded);
            loaded.push_back(block);
            // Two out for one in, so that the cache shrinks again after many blocks were held or dirty.
            let n = loaded.len().saturating_sub(self.limit).min(2);
            loaded.drain(..n).collect()
        };
        for victim in victims {
            if victim == block || !self.evict(victim, false) {
                lock(&self.loaded).push_back(victim);
            }
        }
    }

    /// Brings a block into the cache; says whether it was not there.
    fn load(&self, slot: &Slot, state: &mut State, block: BlockNr) -> Result<bool> {
        if slot.read(block)?.is_some() {
            return Ok(false);
        }
        let mut data = Box::new(ZEROES);
        self.device.read(block, &mut data)?;
        *slot.write(block)? = Some(data);
        *state = State::default();
        Ok(true)
    }

    /// The content of a block, whatever it is.
    fn content(&self, block: BlockNr) -> Result<RwLockReadGuard<'_, Content>> {
        let slot = self.slot(block)?;
        let mut state = lock(&slot.state);
        let is_new = self.load(slot, &mut state, block)?;
        let content = slot.read(block)?;
        drop(state);
        if is_new {
            self.note_loaded(block);
        }
        Ok(content)
    }

    fn read_guard<'a>(
        &'a self,
        block: BlockNr,
        content: RwLockReadGuard<'a, Content>,
    ) -> CachedReadGuard<'a> {
        CachedReadGuard {
            block,
            content,
            _held: self.hold(),
        }
    }

    fn write_guard<'a>(
        &'a self,
        block: BlockNr,
        content: RwLockWriteGuard<'a, Content>,
    ) -> CachedWriteGuard<'a> {
        CachedWriteGuard {
            block,
            content,
            _held: self.hold(),
        }
    }

    fn check(
        content: &Content,
        state: &mut State,
        block: BlockNr,
        validator: &'static Validator,
    ) -> Result {
        match state.validator {
            Some(v) if v.is(validator) => Ok(()),
            Some(_) => Err(Error::WrongValidator(block)),
            None => {
                (validator.check)(content.as_deref().unwrap_or(&ZEROES), block)?;
                state.validator = Some(validator);
                Ok(())
            }
        }
    }

    fn check_writable(&self) -> Result {
        if self.is_read_only() {
            return Err(Error::ReadOnly);
        }
        Ok(())
    }
}

/// Counts a guard.
struct Held<'a>(&'a AtomicUsize);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Shared access to a block of a [`CachedBm`].
pub struct CachedReadGuard<'a> {
    block: BlockNr,
    content: RwLockReadGuard<'a, Content>,
    _held: Held<'a>,
}

impl Deref for CachedReadGuard<'_> {
    type Target = BlockData;

    fn deref(&self) -> &BlockData {
        self.content.as_deref().unwrap_or(&ZEROES)
    }
}

impl Guard for CachedReadGuard<'_> {
    fn location(&self) -> BlockNr {
        self.block
    }
}

/// Exclusive access to a block of a [`CachedBm`].
pub struct CachedWriteGuard<'a> {
    block: BlockNr,
    content: RwLockWriteGuard<'a, Content>,
    _held: Held<'a>,
}

impl Deref for CachedWriteGuard<'_> {
    type Target = BlockData;

    fn deref(&self) -> &BlockData {
        self.content.as_deref().unwrap_or(&ZEROES)
    }
}

impl DerefMut for CachedWriteGuard<'_> {
    fn deref_mut(&mut self) -> &mut BlockData {
        self.content.get_or_insert_with(|| Box::new(ZEROES))
    }
}

impl Guard for CachedWriteGuard<'_> {
    fn location(&self) -> BlockNr {
        self.block
    }
}

impl<D: Device> BlockManager for CachedBm<D> {
    type ReadGuard<'a>
        = CachedReadGuard<'a>
    where
        D: 'a;
    type WriteGuard<'a>
        = CachedWriteGuard<'a>
    where
        D: 'a;

    fn nr_blocks(&self) -> BlockNr {
        self.device.nr_blocks()
    }

    fn read(&self, block: BlockNr, validator: &'static Validator) -> Result<CachedReadGuard<'_>> {
        let slot = self.slot(block)?;
        let mut state = lock(&slot.state);
        let is_new = self.load(slot, &mut state, block)?;
        let content = slot.read(block)?;
        let checked = Self::check(&content, &mut state, block, validator);
        drop(state);
        if is_new {
            self.note_loaded(block);
        }
        checked?;
        Ok(self.read_guard(block, content))
    }

    fn try_read(
        &self,
        block: BlockNr,
        validator: &'static Validator,
    ) -> Result<CachedReadGuard<'_>> {
        let slot = self.slot(block)?;
        let mut state = lock(&slot.state);
        let content = slot.read(block).map_err(|_| Error::WouldBlock)?;
        if content.is_none() {
            return Err(Error::WouldBlock);
        }
        Self::check(&content, &mut state, block, validator)?;
        Ok(self.read_guard(block, content))
    }

    fn read_raw(&self, block: BlockNr) -> Result<CachedReadGuard<'_>> {
        let content = self.content(block)?;
        Ok(self.read_guard(block, content))
    }

    fn write(&self, block: BlockNr, validator: &'static Validator) -> Result<CachedWriteGuard<'_>> {
        self.check_writable()?;
        let slot = self.slot(block)?;
        let mut state = lock(&slot.state);
        let is_new = self.load(slot, &mut state, block)?;
        let content = slot.write(block)?;
        let checked = Self::check(&content, &mut state, block, validator);
        if checked.is_ok() {
            state.dirty = true;
            lock(&self.dirty).insert(block);
        }
        drop(state);
        if is_new {
            self.note_loaded(block);
        }
        checked?;
        Ok(self.write_guard(block, content))
    }

    fn write_zero(
        &self,
        block: BlockNr,
        validator: &'static Validator,
    ) -> Result<CachedWriteGuard<'_>> {
        self.check_writable()?;
        let slot = self.slot(block)?;
        let mut state = lock(&slot.state);
        let mut content = slot.write(block)?;
        let is_new = content.is_none();
        *content = Some(Box::new(ZEROES));
        state.validator = Some(validator);
        state.dirty = true;
        lock(&self.dirty).insert(block);
        drop(state);
        if is_new {
            self.note_loaded(block);
        }
        Ok(self.write_guard(block, content))
    }

    fn prefetch(&self, block: BlockNr) {
        // A block that cannot be read now will say why when it is asked for.
        drop(self.content(block));
    }

    fn flush(&self) -> Result {
        self.check_writable()?;
        let earlier = lock(&self.write_error).take().map_or(Ok(()), Err);
        let written = self.write_blocks(self.dirty_blocks().into_iter(), false);
        let flushed = self.device.flush();
        earlier.and(written).and(flushed)
    }

    fn flush_device(&self) -> Result {
        self.device.flush()
    }

    fn reset(&mut self) {
        self.forget_all();
        *lock(&self.write_error) = None;
    }

    fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::Relaxed);
    }
}
