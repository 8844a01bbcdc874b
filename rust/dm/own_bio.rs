// SPDX-License-Identifier: GPL-2.0

//! Bios of one's own, which are used again and again.
//!
//! There is no allocation and no lock on the way of a bio: what has ended is put on a list by one atomic
//! operation, and taken off it by another one for all at once.

use crate::{
    bindings,
    live::Live,
    BlkStatus,
    Dev,
    Sector,
    SECTOR_SHIFT, //
};
use core::ptr;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    time::{
        ClockSource,
        Monotonic, //
    },
    types::Opaque, //
};

/// Nanoseconds since boot, without the time of sleep.
#[inline]
pub fn now_ns() -> u64 {
    // It is not negative.
    Monotonic::ktime_get() as u64
}

/// Memory for bios. What is in it when is up to devices, so nobody gets to see it.
pub struct Buffer(KVec<u8>);

impl Buffer {
    /// `bytes` of memory, all of them `fill`.
    ///
    /// EINVAL unless that is a number of sectors, ENOMEM if there is no such piece of memory.
    pub fn new(bytes: u32, fill: u8) -> Result<Self> {
        check_len(bytes)?;
        let flags = GFP_KERNEL | kernel::alloc::flags::__GFP_NOWARN;
        Ok(Self(KVec::from_elem(fill, bytes as usize, flags)?))
    }

    /// Fits, as it came from `new`.
    fn len(&self) -> u32 {
        self.0.len() as u32
    }
}

fn check_len(bytes: u32) -> Result {
    if bytes == 0 || bytes & ((1 << SECTOR_SHIFT) - 1) != 0 {
        return Err(EINVAL);
    }
    Ok(())
}

/// What bios do.
#[derive(Clone)]
pub enum Transfer {
    /// Each reads so many bytes into a buffer of its own.
    Read(u32),
    /// Each writes the whole buffer.
    Write(Arc<Buffer>),
    /// Each flushes the write cache.
    Flush,
    /// Each discards so many bytes.
    Discard(u32),
    /// Each has so many bytes zeroed.
    WriteZeroes(u32),
}

/// How a bio ended.
pub struct Ended {
    /// Its outcome.
    pub status: BlkStatus,
    /// How long it took, in nanoseconds; zero if that is not measured.
    pub ns: u64,
}

/// A number of bios for one device, which all do the same.
///
/// `TIMED` says whether it is measured how long they take. Dropping it waits for those in flight.
pub struct OwnBios<const TIMED: bool> {
    /// Never moved, and only used through pointers.
    slots: KVec<Opaque<Slot>>,
    /// Those not in use, linked by `next`.
    idle: *mut Slot,
    /// Those that have ended, taken from `shared`, linked by `next`.
    ended: *mut Slot,
    /// Of those not in `idle`, how many there are.
    pending: usize,
    shared: Pin<KBox<Shared>>,
    plain: bindings::blk_opf_t,
    with_fua: bindings::blk_opf_t,
    bytes: u32,
    vecs: u16,
    dev: Dev,
    buffers: KVec<Arc<Buffer>>,
    _live: Live,
}

// SAFETY: Bios belong to no thread, and nothing else in it does.
unsafe impl<const TIMED: bool> Send for OwnBios<TIMED> {}

/// A bio, and what goes along.
///
/// It is ours, that is of who has the `OwnBios`, except from its submission until it is in the list `ended` of
/// `shared`: then it is the block layer's, and at last `end_io`'s.
#[repr(C)]
struct Slot {
    bio: bindings::bio,
    vec: bindings::bio_vec,
    shared: *const Shared,
    next: *mut Slot,
    submitted: u64,
    ended: u64,
}

#[pin_data]
struct Shared {
    /// Those that have ended, the latest first; or [`WAITING`].
    ended: Atomic<*mut Slot>,
    /// Told by who finds [`WAITING`] in `ended`.
    #[pin]
    wake: Opaque<bindings::completion>,
}

/// None has ended, and somebody waits for one.
const WAITING: *mut Slot = ptr::without_provenance_mut(1);

/// # Safety
///
/// For the block layer only, with the bio of a slot.
unsafe extern "C" fn end_io<const TIMED: bool>(bio: *mut bindings::bio) {
    let slot: *mut Slot = bio.cast();
    // SAFETY: The bio is the first field of a slot, which has become ours. `OwnBios` waits for it to come into the
    // list before it is dropped, and keeps `shared` until then.
    unsafe {
        if TIMED {
            (*slot).ended = now_ns();
        }
        let shared = (*slot).shared;
        let mut first = (*shared).ended.load(Relaxed);
        loop {
            (*slot).next = if first == WAITING {
                ptr::null_mut()
            } else {
                first
            };
            match (*shared).ended.cmpxchg(first, slot, Release) {
                Ok(_) => break,
                Err(now) => first = now,
            }
        }
        // From here on `shared` may be gone, unless somebody waits for what follows.
        if first == WAITING {
            bindings::complete((*shared).wake.get());
        }
    }
}

impl<const TIMED: bool> OwnBios<TIMED> {
    /// `n` bios for `dev`.
    ///
    /// EINVAL if there are none, or if the length is no number of sectors; ENOMEM.
    pub fn new(dev: &Dev, n: usize, transfer: &Transfer) -> Result<Self> {
        if n == 0 {
            return Err(EINVAL);
        }
        let sync = bindings::REQ_SYNC | bindings::REQ_IDLE;
        let (op, bytes) = match transfer {
            Transfer::Read(bytes) => (bindings::req_op_REQ_OP_READ, *bytes),
            Transfer::Write(buffer) => (bindings::req_op_REQ_OP_WRITE | sync, buffer.len()),
            Transfer::Flush => (
                bindings::req_op_REQ_OP_WRITE | sync | bindings::REQ_PREFLUSH,
                0,
            ),
            Transfer::Discard(bytes) => (bindings::req_op_REQ_OP_DISCARD, *bytes),
            Transfer::WriteZeroes(bytes) => (bindings::req_op_REQ_OP_WRITE_ZEROES, *bytes),
        };
        let (is_write, is_flush) = match transfer {
            Transfer::Write(_) => (true, false),
            Transfer::Flush => (false, true),
            _ => (false, false),
        };
        if !is_flush {
            check_len(bytes)?;
        }

        let mut this = Self {
            slots: KVec::with_capacity(n, GFP_KERNEL)?,
            idle: ptr::null_mut(),
            ended: ptr::null_mut(),
            pending: 0,
            shared: KBox::pin_init(
                pin_init!(Shared {
                    ended: Atomic::new(ptr::null_mut()),
                    wake <- Opaque::ffi_init(|slot| {
                        // SAFETY: `slot` is valid for writes and pinned.
                        unsafe { bindings::init_completion(slot) }
                    }),
                }),
                GFP_KERNEL,
            )?,
            plain: op,
            with_fua: if is_write { op | bindings::REQ_FUA } else { op },
            bytes,
            vecs: matches!(transfer, Transfer::Read(_) | Transfer::Write(_)).into(),
            dev: dev.clone(),
            buffers: KVec::with_capacity(n, GFP_KERNEL)?,
            _live: Live::new(),
        };
        for _ in 0..n {
            match transfer {
                Transfer::Read(bytes) => {
                    let buffer = Arc::new(Buffer::new(*bytes, 0)?, GFP_KERNEL)?;
                    this.add(Some(buffer))?;
                }
                Transfer::Write(buffer) => this.add(Some(buffer.clone()))?,
                Transfer::Flush | Transfer::Discard(_) | Transfer::WriteZeroes(_) => {
                    this.add(None)?
                }
            }
        }
        Ok(this)
    }

    /// Adds a bio, for which there must be room.
    fn add(&mut self, buffer: Option<Arc<Buffer>>) -> Result {
        let memory = buffer.as_ref().map(|b| (b.0.as_ptr().cast_mut(), b.len()));
        if let Some(buffer) = buffer {
            self.buffers.push(buffer, GFP_KERNEL)?;
        }
        self.slots.push_within_capacity(Opaque::zeroed())?;
        let slot = self.slots.last().ok_or(EINVAL)?.get();
        // SAFETY: The slot is new and ours, zeroes are valid in it, and as the slots are never moved it stays where
        // it is. The memory has one piece, which the one vector holds; it is kept as long as the slots, and nobody
        // else looks into it.
        unsafe {
            let bio = &raw mut (*slot).bio;
            bindings::bio_init(bio, ptr::null_mut(), &raw mut (*slot).vec, 1, 0);
            if let Some((start, len)) = memory {
                bindings::bio_add_virt_nofail(bio, start.cast(), len);
            }
            (*slot).shared = &*self.shared;
            (*slot).next = self.idle;
        }
        self.idle = slot;
        Ok(())
    }

    /// Submits a bio, for which it waits for one to end if all are in flight.
    ///
    /// With `fua` what is written shall be on stable storage when it ends. Returns how the bio ended the time
    /// before, if it was used before.
    #[inline]
    pub fn submit(&mut self, sector: Sector, fua: bool) -> Option<Ended> {
        let (slot, earlier) = self.take();
        let op = if fua { self.with_fua } else { self.plain };
        // SAFETY: The slot is ours, and so is the bio in it, whose vector has what `bytes` and `vecs` say, as `add`
        // made it and the block layer does not change it. The device is open, and stays so until all bios have
        // ended, and so does the memory.
        unsafe {
            let bio = &raw mut (*slot).bio;
            bindings::bio_reset(bio, self.dev.bdev(), op);
            (*bio).bi_iter.bi_sector = sector;
            (*bio).bi_iter.bi_size = self.bytes;
            (*bio).bi_vcnt = self.vecs;
            (*bio).bi_end_io = Some(end_io::<TIMED>);
            if TIMED {
                (*slot).submitted = now_ns();
            }
            bindings::submit_bio(bio);
        }
        earlier
    }

    /// Waits for a bio that is in flight, or has ended without anybody being told; none if there is no such bio.
    pub fn finish(&mut self) -> Option<Ended> {
        if self.pending == 0 {
            return None;
        }
        if self.ended.is_null() {
            self.collect();
        }
        let (slot, ended) = self.take_ended();
        // SAFETY: The slot is ours.
        unsafe { (*slot).next = self.idle };
        self.idle = slot;
        self.pending -= 1;
        Some(ended)
    }

    /// Whether [`OwnBios::submit`] has to use a bio of which it returns how it ended.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.idle.is_null()
    }

    /// A bio that may be used, and how it ended the time before.
    #[inline]
    fn take(&mut self) -> (*mut Slot, Option<Ended>) {
        if self.ended.is_null() {
            let slot = self.idle;
            if !slot.is_null() {
                // SAFETY: The slot is ours.
                self.idle = unsafe { (*slot).next };
                self.pending += 1;
                return (slot, None);
            }
            self.collect();
        }
        let (slot, ended) = self.take_ended();
        (slot, Some(ended))
    }

    /// Takes one from `ended`, which must not be empty.
    #[inline]
    fn take_ended(&mut self) -> (*mut Slot, Ended) {
        let slot = self.ended;
        // SAFETY: The slot is ours.
        unsafe {
            self.ended = (*slot).next;
            let ended = Ended {
                status: BlkStatus((*slot).bio.bi_status),
                ns: if TIMED {
                    (*slot).ended.saturating_sub((*slot).submitted)
                } else {
                    0
                },
            };
            (slot, ended)
        }
    }

    /// Gets all that have ended, for which it waits for one if there is none. Some must be pending, none in `ended`.
    #[inline(never)]
    fn collect(&mut self) {
        let shared = &*self.shared;
        self.ended = shared.ended.xchg(ptr::null_mut(), Acquire);
        if self.ended.is_null() {
            let none = ptr::null_mut();
            if shared.ended.cmpxchg(none, WAITING, Relaxed).is_ok() {
                // SAFETY: The completion is initialised. Whoever replaces `WAITING`, and nobody else, completes
                // it once; as all but us only add to the list, that happens when the next bio ends.
                unsafe { bindings::wait_for_completion(shared.wake.get()) };
            }
            self.ended = shared.ended.xchg(none, Acquire);
        }
    }
}

impl<const TIMED: bool> Drop for OwnBios<TIMED> {
    fn drop(&mut self) {
        while self.finish().is_some() {}
        for slot in &self.slots {
            // SAFETY: All were initialised by `add`, and none is in flight.
            unsafe { bindings::bio_uninit(&raw mut (*slot.get()).bio) };
        }
    }
}
