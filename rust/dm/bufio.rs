// SPDX-License-Identifier: GPL-2.0

//! A cache of a device's blocks, over dm-bufio.
//!
//! Blocks are `N` bytes. A block is held by many [`ReadGuard`]s or one [`WriteGuard`]; whoever
//! comes in the way gets EDEADLK, nobody waits. That keeps the guards sound whatever the blocks
//! say, for instance if a broken tree names one block in two places.
//!
//! Each cached block remembers a [`Tag`] of the user's, which stands for its type: who reads a
//! block can see that it was checked before, and what is changed is made ready for the disk by its
//! tag's
//! [`Tag::prepare_for_write`].
//!
//! # When a block is made ready
//!
//! dm-bufio may write a changed block at any time, also while it is held. The bytes that
//! [`Tag::prepare_for_write`] changes must not change below a reader, so a block is in one of these
//! states:
//!
//! - clean: ready for the disk;
//! - stale: changed since it was made ready, and held by nobody;
//! - held for reading: clean, or stale. dm-bufio may write it when it is stale, but then writes it
//!   once more, as the last guard marks it changed when dropped;
//! - held for writing: not ready. If dm-bufio writes it like this it writes it once more, too, as
//!   the guard marks it changed when dropped, after the lock is released.
//!
//! dm-bufio makes a stale block that nobody holds ready just before it writes it. So whoever wants
//! the blocks on disk lets that happen while nobody can hold any ([`Client::start_writing`]).
//!
//! C header: [`include/linux/dm-bufio.h`](srctree/include/linux/dm-bufio.h)

mod lock;

use crate::{
    bindings,
    live::Live,
    Dev, //
};
use core::{
    marker::PhantomData,
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull,
};
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    sync::SetOnce, //
};
use lock::Lock;

/// What a cached block remembers: its type.
pub trait Tag<const N: usize>: Copy + Send + Sync + 'static {
    /// Makes a changed block ready for the disk: stores its number and checksum, for example.
    ///
    /// It must not sleep, and depend on nothing but its arguments: it is called when dm-bufio sees
    /// fit, in any thread.
    fn prepare_for_write(self, block: u64, data: &mut [u8; N]);
}

/// What lies beside each cached block.
struct Aux<T> {
    lock: Lock,
    /// Set once while held for reading, replaced while held for writing.
    tag: SetOnce<T>,
}

/// A buffer of a client with these parameters, that dm-bufio keeps for us.
struct Buffer<T, const N: usize>(NonNull<bindings::dm_buffer>, PhantomData<T>);

impl<T, const N: usize> Clone for Buffer<T, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, const N: usize> Copy for Buffer<T, N> {}

impl<T: Tag<N>, const N: usize> Buffer<T, N> {
    fn aux_ptr(self) -> *mut Aux<T> {
        // SAFETY: The buffer is valid, its client was created with room for this.
        unsafe { bindings::dm_bufio_get_aux_data(self.0.as_ptr()).cast() }
    }

    /// # Safety
    ///
    /// The buffer must stay ours for `'a`.
    unsafe fn aux<'a>(self) -> &'a Aux<T> {
        // SAFETY: Initialised by `alloc_callback`, and only shared from then on.
        unsafe { &*self.aux_ptr() }
    }

    fn data(self) -> *mut [u8; N] {
        // SAFETY: The buffer is valid.
        unsafe { bindings::dm_bufio_get_block_data(self.0.as_ptr()).cast() }
    }

    fn block(self) -> u64 {
        // SAFETY: The buffer is valid.
        unsafe { bindings::dm_bufio_get_block_number(self.0.as_ptr()) }
    }

    /// Makes the data ready for the disk.
    ///
    /// # Safety
    ///
    /// The caller must be the only one to use data and tag.
    unsafe fn prepare(self, aux: &Aux<T>) {
        if let Some(tag) = aux.tag.copy() {
            // SAFETY: By the function's requirements; the data is of this size, and initialised as
            // the block was read, or zeroed before it could become stale.
            tag.prepare_for_write(self.block(), unsafe { &mut *self.data() });
        }
    }
}

/// # Safety
///
/// For dm-bufio only, with buffers of clients with these parameters, which it makes for a block and
/// which nobody holds.
unsafe extern "C" fn alloc_callback<T: Tag<N>, const N: usize>(buffer: *mut bindings::dm_buffer) {
    // SAFETY: dm-bufio passes valid buffers.
    let buffer = unsafe { Buffer::<T, N>(NonNull::new_unchecked(buffer), PhantomData) };
    // SAFETY: Nobody uses it now; what it held for another block needs no drop, as tags are `Copy`.
    unsafe {
        buffer.aux_ptr().write(Aux {
            lock: Lock::new(),
            tag: SetOnce::new(),
        });
    }
}

/// # Safety
///
/// For dm-bufio only, with buffers of clients with these parameters.
unsafe extern "C" fn write_callback<T: Tag<N>, const N: usize>(buffer: *mut bindings::dm_buffer) {
    // SAFETY: dm-bufio passes valid buffers, which stay so during the call.
    let (buffer, aux) = unsafe {
        let buffer = Buffer::<T, N>(NonNull::new_unchecked(buffer), PhantomData);
        (buffer, buffer.aux())
    };
    // SAFETY: The lock sees to it that nobody else uses data and tag.
    aux.lock.prepare(|| unsafe { buffer.prepare(aux) });
}

/// A cache of a device's blocks of `N` bytes, a power of two from 512.
///
/// Dropping it writes what was changed, but does not tell of errors.
pub struct Client<T: Tag<N>, const N: usize = 4096> {
    ptr: NonNull<bindings::dm_bufio_client>,
    /// Keeps the device open.
    dev: Dev,
    _live: Live,
    _tag: PhantomData<T>,
}

// SAFETY: dm-bufio's clients can be used on any thread, and tags are `Send`.
unsafe impl<T: Tag<N>, const N: usize> Send for Client<T, N> {}
// SAFETY: As above, by several at once, and tags are `Sync`.
unsafe impl<T: Tag<N>, const N: usize> Sync for Client<T, N> {}

impl<T: Tag<N>, const N: usize> Client<T, N> {
    /// A cache for a device.
    ///
    /// One thread may hold `reserved` blocks at a time, all others one, without fear of running out
    /// of memory.
    pub fn new(dev: &Dev, reserved: u32) -> Result<Self> {
        const {
            assert!(N.is_power_of_two() && N >= 512 && N <= 1 << 20);
            assert!(align_of::<Aux<T>>() <= 8);
        }
        // SAFETY: The device is open and stays so, as we keep `dev`. The callbacks are for these
        // parameters.
        let ptr = from_err_ptr(unsafe {
            bindings::dm_bufio_client_create(
                dev.bdev(),
                N as c_uint,
                reserved,
                size_of::<Aux<T>>() as c_uint,
                Some(alloc_callback::<T, N>),
                Some(write_callback::<T, N>),
                0,
            )
        })?;
        Ok(Self {
            ptr: NonNull::new(ptr).ok_or(ENOMEM)?,
            dev: dev.clone(),
            _live: Live::new(),
            _tag: PhantomData,
        })
    }

    /// The device.
    pub fn dev(&self) -> &Dev {
        &self.dev
    }

    /// The size of the device, in whole blocks.
    pub fn device_size(&self) -> u64 {
        // SAFETY: The client is valid.
        unsafe { bindings::dm_bufio_get_device_size(self.ptr.as_ptr()) }
    }

    /// Fails for block numbers whose sectors cannot be counted.
    fn check(block: u64) -> Result {
        if block > u64::MAX >> N.trailing_zeros() {
            return Err(EIO);
        }
        Ok(())
    }

    /// Gets a buffer with one of dm-bufio's functions.
    fn buffer(
        &self,
        block: u64,
        get: unsafe extern "C" fn(
            *mut bindings::dm_bufio_client,
            bindings::sector_t,
            *mut *mut bindings::dm_buffer,
        ) -> *mut c_void,
    ) -> Result<Option<Held<'_, T, N>>> {
        Self::check(block)?;
        let mut buffer = core::ptr::null_mut();
        // SAFETY: The client is valid and `buffer` writable.
        from_err_ptr(unsafe { get(self.ptr.as_ptr(), block, &mut buffer) })?;
        Ok(NonNull::new(buffer).map(|b| Held {
            buffer: Buffer(b, PhantomData),
            _client: PhantomData,
        }))
    }

    /// Reads a block, from the cache or the device.
    ///
    /// The device's error; EDEADLK if the block is held for writing. Not for [`Target::map`].
    ///
    /// [`Target::map`]: crate::Target::map
    pub fn read(&self, block: u64) -> Result<ReadGuard<'_, T, N>> {
        self.buffer(block, bindings::dm_bufio_read)?
            .ok_or(ENOMEM)?
            .read()
            .ok_or(EDEADLK)
    }

    /// A block if it is in the cache and not held for writing. Does not wait, so it suits
    /// [`Target::map`].
    ///
    /// The error that reading ahead had.
    ///
    /// [`Target::map`]: crate::Target::map
    pub fn get(&self, block: u64) -> Result<Option<ReadGuard<'_, T, N>>> {
        Ok(self
            .buffer(block, bindings::dm_bufio_get)?
            .and_then(Held::read))
    }

    /// Reads a block, from the cache or the device, to change it.
    ///
    /// The device's error; EDEADLK if the block is held. Not for [`Target::map`].
    ///
    /// [`Target::map`]: crate::Target::map
    pub fn write(&self, block: u64) -> Result<WriteGuard<'_, T, N>> {
        self.buffer(block, bindings::dm_bufio_read)?
            .ok_or(ENOMEM)?
            .write()
            .ok_or(EDEADLK)
    }

    /// A block of zeroes without a tag, in place of what the device has; to be filled.
    ///
    /// EDEADLK if the block is held. Not for [`Target::map`].
    ///
    /// [`Target::map`]: crate::Target::map
    pub fn zeroed(&self, block: u64) -> Result<WriteGuard<'_, T, N>> {
        // SAFETY: The data is valid for writing, of this size, and any bytes will do.
        self.renewed(block, |data| unsafe { data.write_bytes(0, 1) })
    }

    /// As [`zeroed`](Self::zeroed), but a block of `content`.
    pub fn filled(&self, block: u64, content: &[u8; N]) -> Result<WriteGuard<'_, T, N>> {
        // SAFETY: The data is valid for writing, and of this size. Nobody but the writer has a reference to it, so
        // `content` is elsewhere.
        self.renewed(block, |data| unsafe {
            data.copy_from_nonoverlapping(content, 1)
        })
    }

    /// A block without a tag that `fill` fills, in place of what the device has. `fill` gets a pointer to data that are
    /// ours alone, and must initialise them.
    fn renewed(&self, block: u64, fill: impl FnOnce(*mut [u8; N])) -> Result<WriteGuard<'_, T, N>> {
        let held = self.buffer(block, bindings::dm_bufio_new)?.ok_or(ENOMEM)?;
        // SAFETY: The buffer is held for the time of the borrow.
        let aux = unsafe { held.buffer.aux::<'_>() };
        if !aux.lock.try_write() {
            return Err(EDEADLK);
        }
        fill(held.buffer.data());
        let mut guard = WriteGuard { held };
        guard.set_tag(None);
        Ok(guard)
    }

    /// Starts to read `n` blocks into the cache. Not for [`Target::map`].
    ///
    /// [`Target::map`]: crate::Target::map
    pub fn prefetch(&self, block: u64, n: u32) {
        if Self::check(block).is_ok() && Self::check(block.saturating_add(n.into())).is_ok() {
            // SAFETY: The client is valid.
            unsafe { bindings::dm_bufio_prefetch(self.ptr.as_ptr(), block, n) };
        }
    }

    /// Writes what was changed and flushes the device. Also tells of errors of earlier writes.
    ///
    /// Blocks that were changed since [`start_writing`](Self::start_writing) must not be held.
    pub fn write_dirty_buffers(&self) -> Result {
        // SAFETY: The client is valid.
        to_result(unsafe { bindings::dm_bufio_write_dirty_buffers(self.ptr.as_ptr()) })
    }

    /// Starts to write what was changed.
    ///
    /// As nobody can hold a block, all blocks are written ready for the disk.
    pub fn start_writing(&mut self) {
        // SAFETY: The client is valid.
        unsafe { bindings::dm_bufio_write_dirty_buffers_async(self.ptr.as_ptr()) };
    }

    /// Flushes the device.
    pub fn issue_flush(&self) -> Result {
        // SAFETY: The client is valid.
        to_result(unsafe { bindings::dm_bufio_issue_flush(self.ptr.as_ptr()) })
    }

    /// Keeps at least `n` blocks in the cache.
    pub fn set_minimum_buffers(&self, n: u32) {
        // SAFETY: The client is valid.
        unsafe { bindings::dm_bufio_set_minimum_buffers(self.ptr.as_ptr(), n) };
    }

    /// Empties the cache; what was changed is written, without telling of errors.
    pub fn reset(&mut self) {
        // SAFETY: The client is valid, and as we have a unique reference no block is held.
        unsafe { bindings::dm_bufio_client_reset(self.ptr.as_ptr()) };
    }
}

impl<T: Tag<N>, const N: usize> Drop for Client<T, N> {
    fn drop(&mut self) {
        // SAFETY: The client is valid and not used again. No block is held, as guards borrow it.
        unsafe { bindings::dm_bufio_client_destroy(self.ptr.as_ptr()) };
    }
}

/// A buffer that dm-bufio keeps for us until this is dropped.
struct Held<'a, T: Tag<N>, const N: usize> {
    buffer: Buffer<T, N>,
    _client: PhantomData<&'a Client<T, N>>,
}

impl<'a, T: Tag<N>, const N: usize> Held<'a, T, N> {
    fn aux(&self) -> &Aux<T> {
        // SAFETY: The buffer is ours as long as `self` is there.
        unsafe { self.buffer.aux() }
    }

    fn read(self) -> Option<ReadGuard<'a, T, N>> {
        let aux = self.aux();
        let ok = aux.lock.try_read();
        ok.then(|| ReadGuard { held: self })
    }

    fn write(self) -> Option<WriteGuard<'a, T, N>> {
        let ok = self.aux().lock.try_write();
        ok.then(|| WriteGuard { held: self })
    }
}

impl<T: Tag<N>, const N: usize> Drop for Held<'_, T, N> {
    fn drop(&mut self) {
        // SAFETY: The buffer is ours and not used again.
        unsafe { bindings::dm_bufio_release(self.buffer.0.as_ptr()) };
    }
}

/// A block held for reading.
///
/// # Invariants
///
/// We are one of the readers.
pub struct ReadGuard<'a, T: Tag<N>, const N: usize = 4096> {
    held: Held<'a, T, N>,
}

// SAFETY: The lock belongs to no thread.
unsafe impl<T: Tag<N>, const N: usize> Send for ReadGuard<'_, T, N> {}
// SAFETY: `&ReadGuard` gives shared access to bytes and the tag.
unsafe impl<T: Tag<N>, const N: usize> Sync for ReadGuard<'_, T, N> {}

impl<T: Tag<N>, const N: usize> ReadGuard<'_, T, N> {
    /// The block's number.
    pub fn block(&self) -> u64 {
        self.held.buffer.block()
    }

    /// What the block remembers.
    pub fn tag(&self) -> Option<T> {
        self.held.aux().tag.copy()
    }

    /// Has the block remember `tag`; EBUSY if it has one already.
    pub fn set_tag(&self, tag: T) -> Result {
        if self.held.aux().tag.populate(tag) {
            Ok(())
        } else {
            Err(EBUSY)
        }
    }
}

impl<T: Tag<N>, const N: usize> Deref for ReadGuard<'_, T, N> {
    type Target = [u8; N];

    fn deref(&self) -> &[u8; N] {
        // SAFETY: The data is of this size and initialised. We are a reader, so there is no writer,
        // and the block is not made ready.
        unsafe { &*self.held.buffer.data() }
    }
}

impl<T: Tag<N>, const N: usize> Drop for ReadGuard<'_, T, N> {
    fn drop(&mut self) {
        if self.held.aux().lock.unlock_read() {
            // SAFETY: The buffer is ours, and was read or is new.
            unsafe { bindings::dm_bufio_mark_buffer_dirty(self.held.buffer.0.as_ptr()) };
        }
    }
}

/// A block held for writing. It counts as changed when this is dropped.
///
/// # Invariants
///
/// We are the writer.
pub struct WriteGuard<'a, T: Tag<N>, const N: usize = 4096> {
    held: Held<'a, T, N>,
}

// SAFETY: The lock belongs to no thread.
unsafe impl<T: Tag<N>, const N: usize> Send for WriteGuard<'_, T, N> {}
// SAFETY: `&WriteGuard` gives shared access to bytes and the tag.
unsafe impl<T: Tag<N>, const N: usize> Sync for WriteGuard<'_, T, N> {}

impl<T: Tag<N>, const N: usize> WriteGuard<'_, T, N> {
    /// The block's number.
    pub fn block(&self) -> u64 {
        self.held.buffer.block()
    }

    /// What the block remembers.
    pub fn tag(&self) -> Option<T> {
        self.held.aux().tag.copy()
    }

    /// Has the block remember `tag`, or nothing, instead of what it did.
    pub fn set_tag(&mut self, tag: Option<T>) {
        let new = SetOnce::new();
        if let Some(tag) = tag {
            new.populate(tag);
        }
        // SAFETY: We are the writer, so nobody else uses the tag; tags need no drop.
        unsafe { (&raw mut (*self.held.buffer.aux_ptr()).tag).write(new) };
    }
}

impl<T: Tag<N>, const N: usize> Deref for WriteGuard<'_, T, N> {
    type Target = [u8; N];

    fn deref(&self) -> &[u8; N] {
        // SAFETY: The data is of this size and initialised, and we are the writer.
        unsafe { &*self.held.buffer.data() }
    }
}

impl<T: Tag<N>, const N: usize> DerefMut for WriteGuard<'_, T, N> {
    fn deref_mut(&mut self) -> &mut [u8; N] {
        // SAFETY: The data is of this size and initialised, and we are the writer.
        unsafe { &mut *self.held.buffer.data() }
    }
}

impl<T: Tag<N>, const N: usize> Drop for WriteGuard<'_, T, N> {
    fn drop(&mut self) {
        // In this order: a block that is written while we are the writer is not made ready, so it
        // must be written again.
        self.held.aux().lock.unlock_write();
        // SAFETY: The buffer is ours, and was read or is new.
        unsafe { bindings::dm_bufio_mark_buffer_dirty(self.held.buffer.0.as_ptr()) };
    }
}
