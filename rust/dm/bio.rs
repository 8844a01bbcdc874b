// SPDX-License-Identifier: GPL-2.0

//! Bios that a target owns.

use crate::{
    bindings,
    Dev,
    Sector,
    SECTOR_SHIFT, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

/// The outcome of a bio.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlkStatus(pub(crate) bindings::blk_status_t);

impl BlkStatus {
    /// Success.
    pub const OK: Self = Self(0);
    /// EOPNOTSUPP.
    pub const NOTSUPP: Self = Self(bindings::BLK_STS_NOTSUPP);
    /// ETIMEDOUT.
    pub const TIMEOUT: Self = Self(bindings::BLK_STS_TIMEOUT);
    /// ENOSPC.
    pub const NOSPC: Self = Self(bindings::BLK_STS_NOSPC);
    /// EREMOTEIO: the device below refused.
    pub const TARGET: Self = Self(bindings::BLK_STS_TARGET);
    /// ENODATA.
    pub const MEDIUM: Self = Self(bindings::BLK_STS_MEDIUM);
    /// EILSEQ.
    pub const PROTECTION: Self = Self(bindings::BLK_STS_PROTECTION);
    /// ENOMEM.
    pub const RESOURCE: Self = Self(bindings::BLK_STS_RESOURCE);
    /// EIO.
    pub const IOERR: Self = Self(bindings::BLK_STS_IOERR);
    /// The core shall map the bio again, with the table that is live by then.
    pub const DM_REQUEUE: Self = Self(bindings::BLK_STS_DM_REQUEUE);
    /// EAGAIN, for bios that must not wait.
    pub const AGAIN: Self = Self(bindings::BLK_STS_AGAIN);
    /// EINVAL.
    pub const INVAL: Self = Self(bindings::BLK_STS_INVAL);

    /// The status for an error.
    pub fn from_error(err: Error) -> Self {
        // SAFETY: The function takes any number.
        Self(unsafe { bindings::errno_to_blk_status(err.to_errno()) })
    }

    /// The error for a status.
    pub fn to_result(self) -> Result {
        // SAFETY: All statuses come from the kernel.
        kernel::error::to_result(unsafe { bindings::blk_status_to_errno(self.0) })
    }

    /// Whether it is success.
    pub fn is_ok(self) -> bool {
        self == Self::OK
    }
}

impl From<Error> for BlkStatus {
    fn from(err: Error) -> Self {
        Self::from_error(err)
    }
}

/// What a bio asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Read data.
    Read,
    /// Write data, or flush if there is none.
    Write,
    /// Flush the write cache.
    Flush,
    /// Forget data.
    Discard,
    /// Forget data beyond recovery.
    SecureErase,
    /// Write zeroes.
    WriteZeroes,
    /// Something else.
    Other(u8),
}

impl Op {
    pub(crate) fn from_opf(opf: bindings::blk_opf_t) -> Self {
        match opf & bindings::REQ_OP_MASK {
            bindings::req_op_REQ_OP_READ => Self::Read,
            bindings::req_op_REQ_OP_WRITE => Self::Write,
            bindings::req_op_REQ_OP_FLUSH => Self::Flush,
            bindings::req_op_REQ_OP_DISCARD => Self::Discard,
            bindings::req_op_REQ_OP_SECURE_ERASE => Self::SecureErase,
            bindings::req_op_REQ_OP_WRITE_ZEROES => Self::WriteZeroes,
            other => Self::Other(other as u8),
        }
    }
}

/// What lies beside each bio of a target with per-bio data of type `P`.
#[repr(C)]
pub(crate) struct Slot<P> {
    pub(crate) data: P,
    /// How often the bio was dropped rather than ended.
    drops: Atomic<u32>,
}

impl<P> Slot<P> {
    /// What the core reserves for it; it keeps to the alignment as the size is a multiple of it.
    pub(crate) const SIZE: usize = {
        assert!(align_of::<Self>() <= 8);
        assert!(size_of::<Self>() <= 4096);
        size_of::<Self>()
    };

    pub(crate) fn new(data: P) -> Self {
        Self {
            data,
            drops: Atomic::new(0),
        }
    }

    /// Where the slot of a bio is.
    ///
    /// # Safety
    ///
    /// `bio` must be a clone that the core made for a target with per-bio data of type `P`.
    #[inline]
    pub(crate) unsafe fn of(bio: *mut bindings::bio) -> *mut Self {
        // SAFETY: By the function's requirements the core reserved that much before the bio.
        unsafe { bindings::dm_per_bio_data(bio, Self::SIZE).cast() }
    }

    /// Whether the target dropped the bio when told of its end, having dropped it before.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.drops.load(Relaxed) > 1
    }
}

/// A bio that the target owns, with its per-bio data.
///
/// It is given to [`Target::map`] and [`Target::end_io`] and either given back in what these return,
/// or kept and ended or submitted later. One that is dropped ends with an I/O error, so none is
/// ever lost; [`Target::end_io`] is told of this, too, unless it drops the bio again.
///
/// Once the bio came back from below ([`Target::end_io`]), its sector and length count for nothing
/// any more.
///
/// [`Target::map`]: crate::Target::map
/// [`Target::end_io`]: crate::Target::end_io
///
/// # Invariants
///
/// `ptr` is a bio of the core's for a target with per-bio data of type `P`, which is initialised,
/// and it is ours: it is neither in flight nor in any list, and nobody else has a `Bio` of it.
#[repr(transparent)]
pub struct Bio<P> {
    ptr: NonNull<bindings::bio>,
    _data: PhantomData<P>,
}

// SAFETY: A bio belongs to no thread; the per-bio data goes along.
unsafe impl<P: Send> Send for Bio<P> {}
// SAFETY: `&Bio` only allows to read the bio and to share the per-bio data.
unsafe impl<P: Sync> Sync for Bio<P> {}

impl<P> Bio<P> {
    /// # Safety
    ///
    /// The type invariants must hold for `ptr`.
    #[inline]
    pub(crate) unsafe fn from_raw(ptr: NonNull<bindings::bio>) -> Self {
        // INVARIANT: By the function's requirements.
        Self {
            ptr,
            _data: PhantomData,
        }
    }

    /// Gives up ownership without ending the bio.
    #[inline]
    pub(crate) fn into_raw(self) -> NonNull<bindings::bio> {
        ManuallyDrop::new(self).ptr
    }

    #[inline]
    pub(crate) fn raw(&self) -> NonNull<bindings::bio> {
        self.ptr
    }

    #[inline]
    fn bio(&self) -> &bindings::bio {
        // SAFETY: The bio is valid and ours by the type invariants.
        unsafe { self.ptr.as_ref() }
    }

    #[inline]
    fn bio_mut(&mut self) -> &mut bindings::bio {
        // SAFETY: The bio is valid and ours by the type invariants.
        unsafe { self.ptr.as_mut() }
    }

    #[inline]
    fn opf(&self) -> bindings::blk_opf_t {
        self.bio().bi_opf
    }

    /// What it asks for.
    #[inline]
    pub fn op(&self) -> Op {
        Op::from_opf(self.opf())
    }

    /// Whether it is a discard.
    #[inline]
    pub fn is_discard(&self) -> bool {
        self.op() == Op::Discard
    }

    /// Whether data goes to the device; C's `bio_data_dir(bio) == WRITE`.
    #[inline]
    pub fn is_write(&self) -> bool {
        self.opf() & 1 != 0
    }

    /// Whether data comes from the device; C's `bio_data_dir(bio) == READ`.
    #[inline]
    pub fn is_read(&self) -> bool {
        !self.is_write()
    }

    /// Whether the write cache is to be flushed before or bypassed; C's `op_is_flush`.
    #[inline]
    pub fn is_flush_or_fua(&self) -> bool {
        self.opf() & (bindings::REQ_FUA | bindings::REQ_PREFLUSH) != 0
    }

    /// Whether its data must be on stable storage when it ends.
    #[inline]
    pub fn is_fua(&self) -> bool {
        self.opf() & bindings::REQ_FUA != 0
    }

    /// Whether what was written before must be on stable storage when it ends.
    #[inline]
    pub fn is_preflush(&self) -> bool {
        self.opf() & bindings::REQ_PREFLUSH != 0
    }

    /// Whether it must not wait, but fail with [`BlkStatus::AGAIN`].
    #[inline]
    pub fn is_nowait(&self) -> bool {
        self.opf() & bindings::REQ_NOWAIT != 0
    }

    /// Whether it reads ahead and may fail.
    #[inline]
    pub fn is_readahead(&self) -> bool {
        self.opf() & bindings::REQ_RAHEAD != 0
    }

    /// Whether somebody waits for it.
    #[inline]
    pub fn is_sync(&self) -> bool {
        self.opf() & bindings::REQ_SYNC != 0
    }

    /// Whether it is metadata of a file system.
    #[inline]
    pub fn is_meta(&self) -> bool {
        self.opf() & bindings::REQ_META != 0
    }

    /// Its priority, as in C's `bi_ioprio`.
    #[inline]
    pub fn ioprio(&self) -> u16 {
        self.bio().bi_ioprio
    }

    /// Its first sector; in [`Target::map`] relative to the beginning of the target.
    ///
    /// [`Target::map`]: crate::Target::map
    #[inline]
    pub fn sector(&self) -> Sector {
        self.bio().bi_iter.bi_sector
    }

    /// Moves it.
    #[inline]
    pub fn set_sector(&mut self, sector: Sector) {
        self.bio_mut().bi_iter.bi_sector = sector;
    }

    /// Its length in bytes; zero for a flush.
    #[inline]
    pub fn len_bytes(&self) -> u32 {
        self.bio().bi_iter.bi_size
    }

    /// Its length in sectors; zero for a flush.
    #[inline]
    pub fn len_sectors(&self) -> Sector {
        Sector::from(self.len_bytes() >> SECTOR_SHIFT)
    }

    /// The sector after its last one.
    #[inline]
    pub fn end_sector(&self) -> Sector {
        self.sector().wrapping_add(self.len_sectors())
    }

    /// Leaves out what is beyond the first `sectors`; does nothing if it has no more.
    ///
    /// The bio still ends as a whole, so what is left out must be dealt with otherwise, for a read
    /// by [`Bio::zero_fill`].
    #[inline]
    pub fn truncate(&mut self, sectors: Sector) {
        if sectors < self.len_sectors() {
            self.bio_mut().bi_iter.bi_size = (sectors << SECTOR_SHIFT) as u32;
        }
    }

    /// Sends it to a device, when submitted.
    #[inline]
    pub fn set_dev(&mut self, dev: &Dev) {
        // SAFETY: The bio is ours, the device is open.
        unsafe { bindings::dm_rs_helper_bio_set_dev(self.ptr.as_ptr(), dev.bdev()) };
    }

    /// Sends it to `sector` of a device, when submitted.
    #[inline]
    pub fn remap(&mut self, dev: &Dev, sector: Sector) {
        self.set_dev(dev);
        self.set_sector(sector);
    }

    /// Fills the memory of a read with zeroes; does nothing for other bios.
    pub fn zero_fill(&mut self) {
        if self.op() == Op::Read {
            // SAFETY: The bio is ours and a read, so its memory is there to be written to.
            unsafe { bindings::zero_fill_bio(self.ptr.as_ptr()) };
        }
    }

    #[inline]
    fn slot(&self) -> NonNull<Slot<P>> {
        // SAFETY: By the type invariants the bio has a slot of this type, and that is not null.
        unsafe { NonNull::new_unchecked(Slot::of(self.ptr.as_ptr())) }
    }

    /// Its per-bio data.
    #[inline]
    pub fn data(&self) -> &P {
        // SAFETY: Initialised and ours by the type invariants.
        unsafe { &self.slot().as_ref().data }
    }

    /// Its per-bio data.
    #[inline]
    pub fn data_mut(&mut self) -> &mut P {
        // SAFETY: Initialised and ours by the type invariants.
        unsafe { &mut self.slot().as_mut().data }
    }

    /// Ends it. [`Target::end_io`] is told.
    ///
    /// [`Target::end_io`]: crate::Target::end_io
    #[inline]
    pub fn end(self, status: BlkStatus) {
        let mut bio = self.into_raw();
        // SAFETY: By the type invariants the bio was ours, so it may be ended.
        unsafe {
            bio.as_mut().bi_status = status.0;
            bindings::bio_endio(bio.as_ptr());
        }
    }

    /// Has the core map it again later, with the table that is live by then.
    pub fn requeue(self) {
        self.end(BlkStatus::DM_REQUEUE);
    }

    /// Sends it down to where it was mapped to, like `dm_submit_bio_remap`.
    ///
    /// [`Target::end_io`] is told when it comes back.
    ///
    /// [`Target::end_io`]: crate::Target::end_io
    #[inline]
    pub fn submit(self) {
        // SAFETY: By the type invariants the bio was ours, so it may be submitted. All targets of
        // this crate have the core expect this, as they set `accounts_remapped_io`. The device
        // below stays open until the table is destroyed, and for that the core waits for all bios.
        unsafe {
            bindings::dm_submit_bio_remap(self.into_raw().as_ptr(), core::ptr::null_mut());
        }
    }
}

impl<P> Drop for Bio<P> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the per-bio data is initialised and the bio is ours, so it
        // may be ended.
        unsafe {
            self.slot().as_ref().drops.fetch_add(1, Relaxed);
            self.ptr.as_mut().bi_status = BlkStatus::IOERR.0;
            bindings::bio_endio(self.ptr.as_ptr());
        }
    }
}
