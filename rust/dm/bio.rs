// SPDX-License-Identifier: GPL-2.0

//! Bios that a target owns.

use crate::{
    bindings,
    ctr::Devices,
    BlkStatus,
    Dev,
    Sector,
    SECTOR_SHIFT, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::prelude::*;

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
    /// Those that the bio may be sent to: they stay open until the target is destroyed, for which
    /// the core waits for the bio.
    devices: *const Devices,
    stage: Stage,
    /// How often the bio was dropped rather than ended.
    drops: u8,
}

/// How far a bio has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It came from above.
    New,
    /// It has a device to go to.
    Mapped,
    /// It has ended, or come back from below.
    Ended,
}

impl<P> Slot<P> {
    /// What the core reserves for it; it keeps to the alignment as the size is a multiple of it.
    pub(crate) const SIZE: usize = {
        assert!(align_of::<Self>() <= 8);
        assert!(size_of::<Self>() <= 4096);
        size_of::<Self>()
    };

    /// `devices` must live as long as the slot.
    pub(crate) fn new(data: P, devices: *const Devices) -> Self {
        Self {
            data,
            devices,
            stage: Stage::New,
            drops: 0,
        }
    }

    /// Whether the bio has an open device to go to, and has not ended.
    #[inline]
    pub(crate) fn is_submittable(&self) -> bool {
        self.stage == Stage::Mapped
    }

    /// The bio ends. Whether the target is to be told: not if it dropped the bio when it was told
    /// of its end, having dropped it before.
    pub(crate) fn end(&mut self) -> bool {
        self.stage = Stage::Ended;
        self.drops <= 1
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
}

/// A bio that the target owns, with its per-bio data.
///
/// It is given to [`Target::map`] and [`Target::end_io`] and either given back in what these
/// return, or kept and ended or submitted later. One that is dropped ends with an I/O error, so
/// none is ever lost; [`Target::end_io`] is told of this, too, unless it drops the bio again.
///
/// A bio may only be sent to devices that its own target opened ([`Ctr::get_device`]) or borrowed
/// ([`Ctr::borrow_device`]), as these stay open long enough. Submitting one that was sent elsewhere,
/// or nowhere, ends it with an I/O error.
///
/// Once the bio came back from below ([`Target::end_io`]), its sector and length count for nothing
/// any more, and it cannot be submitted again.
///
/// [`Target::map`]: crate::Target::map
/// [`Target::end_io`]: crate::Target::end_io
/// [`Ctr::get_device`]: crate::Ctr::get_device
/// [`Ctr::borrow_device`]: crate::Ctr::borrow_device
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
    ///
    /// As with [`is_fua`](Self::is_fua) and [`is_preflush`](Self::is_preflush), nothing is known of that once the bio was
    /// submitted to a device: `submit_bio_noacct` clears the flags if that has no write cache.
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

    /// Whether the zeroes that it writes shall take up space.
    #[inline]
    pub fn is_nounmap(&self) -> bool {
        self.opf() & bindings::REQ_NOUNMAP != 0
    }

    /// Its first sector; in [`Target::map`] relative to the beginning of the target.
    ///
    /// [`Target::map`]: crate::Target::map
    #[inline]
    pub fn sector(&self) -> Sector {
        self.bio().bi_iter.bi_sector
    }

    #[inline]
    fn set_sector(&mut self, sector: Sector) {
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

    /// Leaves all but the first `sectors` to another bio, for which the core maps the target again; at least
    /// one is kept. Does nothing if it has no more, nor with a write-zeroes of a zoned device, which the core does
    /// not take apart.
    ///
    /// # Safety
    ///
    /// The bio must be a discard or a write-zeroes, about to be given to the target's map function, and the
    /// core must not have made another one for the same part.
    pub(crate) unsafe fn accept(&mut self, sectors: Sector) {
        let sectors = sectors.max(1);
        if sectors < self.len_sectors() && !self.is_zoned_write_zeroes() {
            // SAFETY: By the function's requirements; it has more sectors, so they fit the type.
            unsafe { bindings::dm_accept_partial_bio(self.ptr.as_ptr(), sectors as c_uint) };
        }
    }

    fn is_zoned_write_zeroes(&self) -> bool {
        // SAFETY: The bio has a device, which is open: the mapped device, as long as it was not sent elsewhere.
        self.op() == Op::WriteZeroes
            && unsafe { bindings::dm_rs_helper_bdev_is_zoned(self.bio().bi_bdev) }
    }

    /// Sends it to one of its target's devices, when submitted.
    ///
    /// Returns its per-bio data, for convenience.
    #[inline]
    pub fn set_dev(&mut self, dev: &Dev) -> &mut P {
        let bio = self.ptr.as_ptr();
        let slot = self.slot_mut();
        if slot.stage == Stage::Ended {
            return &mut slot.data;
        }
        // SAFETY: The devices are part of the target, which is not destroyed while it has a bio.
        if unsafe { (*slot.devices).contains(dev) } {
            slot.stage = Stage::Mapped;
            // SAFETY: The bio is ours, the device is open.
            unsafe { bindings::dm_rs_helper_bio_set_dev(bio, dev.bdev()) };
        } else {
            slot.stage = Stage::New;
        }
        &mut slot.data
    }

    /// Whether it has an open device to go to, and has not ended.
    #[inline]
    pub(crate) fn is_submittable(&self) -> bool {
        self.slot().is_submittable()
    }

    /// Sends it to `sector` of a device, when submitted.
    ///
    /// Returns its per-bio data, for convenience.
    #[inline]
    pub fn remap(&mut self, dev: &Dev, sector: Sector) -> &mut P {
        self.set_sector(sector);
        self.set_dev(dev)
    }

    /// Counts it in the I/O statistics of `dev`, on whose behalf it goes elsewhere.
    #[inline]
    pub fn count_for(&self, dev: &Dev) {
        // SAFETY: The device is open.
        unsafe {
            bindings::dm_rs_helper_bdev_count_io(
                dev.bdev(),
                self.opf(),
                self.len_bytes() >> SECTOR_SHIFT,
            )
        };
    }

    /// Fills the memory of a read with zeroes; does nothing for other bios.
    pub fn zero_fill(&mut self) {
        if self.op() == Op::Read {
            // SAFETY: The bio is ours and a read, so its memory is there to be written to.
            unsafe { bindings::zero_fill_bio(self.ptr.as_ptr()) };
        }
    }

    #[inline]
    fn slot(&self) -> &Slot<P> {
        // SAFETY: Initialised and ours by the type invariants.
        unsafe { &*Slot::of(self.ptr.as_ptr()) }
    }

    #[inline]
    fn slot_mut(&mut self) -> &mut Slot<P> {
        // SAFETY: Initialised and ours by the type invariants.
        unsafe { &mut *Slot::of(self.ptr.as_ptr()) }
    }

    /// Its per-bio data.
    #[inline]
    pub fn data(&self) -> &P {
        &self.slot().data
    }

    /// Its per-bio data.
    #[inline]
    pub fn data_mut(&mut self) -> &mut P {
        &mut self.slot_mut().data
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

    /// Sends it down to where it was mapped to, like `dm_submit_bio_remap`.
    ///
    /// [`Target::end_io`] is told when it comes back.
    ///
    /// [`Target::end_io`]: crate::Target::end_io
    #[inline]
    pub fn submit(self) {
        if !self.is_submittable() {
            return self.refuse();
        }
        // SAFETY: By the type invariants the bio was ours, so it may be submitted. The core
        // expects this of all targets of this crate, as they set `accounts_remapped_io`. The
        // device below is one of the target's, so stays open until it is destroyed, for which
        // the core waits for all bios.
        unsafe {
            bindings::dm_submit_bio_remap(self.into_raw().as_ptr(), core::ptr::null_mut());
        }
    }
}

impl<P> Bio<P> {
    #[cold]
    fn refuse(self) {
        crate::dm_err_limited!("bio", "submitted without a device of its target");
        self.end(BlkStatus::IOERR);
    }
}

impl<P> Drop for Bio<P> {
    fn drop(&mut self) {
        let slot = self.slot_mut();
        slot.drops = slot.drops.saturating_add(1);
        // SAFETY: By the type invariants the bio is ours, so it may be ended.
        unsafe {
            self.ptr.as_mut().bi_status = BlkStatus::IOERR.0;
            bindings::bio_endio(self.ptr.as_ptr());
        }
    }
}

#[cfg(dm_thin_kunit)]
pub(crate) mod fake {
    use super::*;

    /// Words before and after a bio that the core's own struct around it does not exceed.
    const PAD: usize = 64;

    /// A bio as the core makes them, without a device; its end is not told to anybody.
    #[repr(C)]
    pub(crate) struct FakeBio {
        before: [u64; PAD],
        bio: bindings::bio,
        after: [u64; PAD],
    }

    impl FakeBio {
        pub(crate) fn new<P>(data: P, sector: Sector, op: bindings::req_op) -> Result<KBox<Self>> {
            const { assert!(Slot::<P>::SIZE < PAD * size_of::<u64>() / 2) };
            let mut this = KBox::new(
                Self {
                    before: [0; PAD],
                    bio: pin_init::zeroed(),
                    after: [0; PAD],
                },
                GFP_KERNEL,
            )?;
            this.bio.bi_iter.bi_sector = sector;
            this.bio.bi_opf = op;
            this.bio.bi_status = BlkStatus::NOTSUPP.0;
            // SAFETY: The core's struct around the bio is zeroed, which says that the slot is
            // before it, and there is room for both.
            unsafe { Slot::of(&raw mut this.bio).write(Slot::new(data, core::ptr::null())) };
            Ok(this)
        }

        /// # Safety
        ///
        /// `P` must be that of `new`, this must be called once, and the bio not outlive `self`.
        pub(crate) unsafe fn bio<P>(&mut self) -> Bio<P> {
            // SAFETY: `self` covers the bio and its slot, which `new` initialised.
            unsafe {
                let this: *mut Self = self;
                Bio::from_raw(NonNull::new_unchecked(&raw mut (*this).bio))
            }
        }

        pub(crate) fn status(&self) -> BlkStatus {
            // SAFETY: Valid; it may have been changed through the bio.
            BlkStatus(unsafe { (&raw const self.bio.bi_status).read_volatile() })
        }
    }
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_bio)]
mod tests {
    use super::{
        fake::FakeBio,
        *, //
    };
    use kernel::types::Opaque;

    #[test]
    fn knows_what_it_is() -> Result {
        let mut fake = FakeBio::new(5u64, 100, bindings::req_op_REQ_OP_DISCARD)?;
        fake_len(&mut fake, 0);
        // SAFETY: The type is right, and the bio does not leave this function.
        let mut bio = unsafe { fake.bio::<u64>() };
        assert!(bio.op() == Op::Discard);
        assert!(bio.is_write() && !bio.is_read());
        assert!(!bio.is_flush_or_fua() && !bio.is_nowait());
        assert_eq!(bio.sector(), 100);
        bio.set_sector(7);
        assert_eq!(bio.end_sector(), 7);
        *bio.data_mut() += 1;
        assert_eq!(*bio.data(), 6);
        bio.end(BlkStatus::OK);
        assert!(fake.status() == BlkStatus::OK);
        Ok(())
    }

    #[test]
    fn dropped_bios_fail() -> Result {
        let mut fake = FakeBio::new((), 0, bindings::req_op_REQ_OP_READ)?;
        // SAFETY: The type is right, and the bio does not leave this function.
        drop(unsafe { fake.bio::<()>() });
        assert!(fake.status() == BlkStatus::IOERR);
        Ok(())
    }

    #[test]
    fn only_mapped_bios_are_submitted() -> Result {
        let mut fake = FakeBio::new((), 0, bindings::req_op_REQ_OP_READ)?;
        // SAFETY: The type is right, and the bio does not leave this function.
        unsafe { fake.bio::<()>() }.submit();
        assert!(fake.status() == BlkStatus::IOERR);
        Ok(())
    }

    #[test]
    fn truncates_only() -> Result {
        let mut fake = FakeBio::new((), 0, bindings::req_op_REQ_OP_WRITE)?;
        fake_len(&mut fake, 16 << SECTOR_SHIFT);
        // SAFETY: The type is right, and the bio does not leave this function.
        let mut bio = unsafe { fake.bio::<()>() };
        bio.truncate(20);
        assert_eq!(bio.len_sectors(), 16);
        bio.truncate(3);
        assert_eq!(bio.len_bytes(), 3 << SECTOR_SHIFT);
        bio.end(BlkStatus::OK);
        Ok(())
    }

    #[test]
    fn zeroes_of_zoned_devices_stay_whole() -> Result {
        if cfg!(not(CONFIG_BLK_DEV_ZONED)) {
            return Ok(());
        }
        let queue = KBox::new(Opaque::<bindings::request_queue>::zeroed(), GFP_KERNEL)?;
        let dev = KBox::new(Opaque::<bindings::block_device>::zeroed(), GFP_KERNEL)?;
        let mut fake = FakeBio::new((), 0, bindings::req_op_REQ_OP_WRITE_ZEROES)?;
        fake_len(&mut fake, 16 << SECTOR_SHIFT);
        // SAFETY: The type is right, and the bio does not leave this function.
        let mut bio = unsafe { fake.bio::<()>() };
        // SAFETY: All are ours, and stay until the end of the function.
        unsafe {
            (*queue.get()).limits.features = bindings::BLK_FEAT_ZONED;
            (*dev.get()).bd_queue = queue.get();
            bio.ptr.as_mut().bi_bdev = dev.get();
        }
        // SAFETY: It is a write-zeroes that nothing was done with.
        unsafe { bio.accept(3) };
        assert_eq!(bio.len_sectors(), 16);
        bio.end(BlkStatus::OK);
        Ok(())
    }

    fn fake_len(fake: &mut FakeBio, len: u32) {
        // SAFETY: The bio is not ours any more when it is dropped, only its length is set here.
        let bio = core::mem::ManuallyDrop::new(unsafe { fake.bio::<()>() });
        // SAFETY: Valid, and nobody else uses it.
        unsafe { (*bio.raw().as_ptr()).bi_iter.bi_size = len };
    }
}
