// SPDX-License-Identifier: GPL-2.0

//! Clones of a target's bios.

use crate::{
    bindings,
    live::Live,
    Bio,
    BlkStatus,
    Dev,
    NoIo,
    Sector,
    SECTOR_SHIFT, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    error::to_result,
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// A reserve of bios to clone into, which keeps I/O going without memory.
///
/// It can be cloned; the reserve is freed with the last clone and the last bio.
#[derive(Clone)]
pub struct BioSet(Arc<Set>);

#[pin_data(PinnedDrop)]
struct Set {
    #[pin]
    set: Opaque<bindings::bio_set>,
}

// SAFETY: Sets can be used and destroyed on any thread.
unsafe impl Send for Set {}
// SAFETY: As above, and used by several at once.
unsafe impl Sync for Set {}

#[pinned_drop]
impl PinnedDrop for Set {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Initialised by `BioSet::new`. No bio is left, as each holds a reference.
        unsafe { bindings::bioset_exit(self.set.get()) };
    }
}

impl BioSet {
    /// A reserve of `n` bios.
    pub fn new(n: u32) -> Result<Self> {
        Ok(Self(Arc::pin_init(
            try_pin_init!(Set {
                set <- Opaque::try_ffi_init(|slot: *mut bindings::bio_set| {
                    // SAFETY: `slot` is valid for writes, and zeroes are what it must be before.
                    unsafe {
                        slot.write_bytes(0, 1);
                        to_result(bindings::bioset_init(slot, n, 0, 0))
                    }
                }),
            }),
            GFP_KERNEL,
        )?))
    }

    /// Clones a bio: the clone has the same operation, place and memory.
    ///
    /// The bio itself is kept until the clone has ended, and is then given to `done`. Both are
    /// given back if the bio has ended already, or if there is no memory for the record of that;
    /// the clone itself is waited for.
    pub fn clone_bio<P: Send + 'static, D: BioDone<P>>(
        &self,
        bio: Bio<P>,
        done: KBox<D>,
    ) -> Result<AsyncBio<P, D>, (Bio<P>, KBox<D>)> {
        if bio.has_ended() {
            return Err((bio, done));
        }
        let place = {
            let _noio = NoIo::enter();
            KBox::<Context<P, D>>::new_uninit(GFP_KERNEL)
        };
        let Ok(place) = place else {
            return Err((bio, done));
        };
        // SAFETY: The bio is ours, and so is its memory as long as we keep it; the set is valid.
        let clone = unsafe {
            bindings::bio_alloc_clone(
                (*bio.raw().as_ptr()).bi_bdev,
                bio.raw().as_ptr(),
                bindings::GFP_NOIO,
                self.0.set.get(),
            )
        };
        let Some(mut clone) = NonNull::new(clone) else {
            return Err((bio, done));
        };
        let context = KBox::write(
            place,
            Context {
                bio,
                done,
                dev: None,
                set: self.0.clone(),
                live: Live::new(),
            },
        );
        // SAFETY: It is new and ours.
        unsafe {
            let clone = clone.as_mut();
            clone.bi_end_io = Some(end_io::<P, D>);
            clone.bi_private = KBox::into_raw(context).cast();
        }
        Ok(AsyncBio {
            clone,
            _context: PhantomData,
        })
    }
}

/// What is told when a clone has ended.
pub trait BioDone<P>: Send + Sized + 'static {
    /// The clone of `bio` has ended. May be called in interrupt context.
    fn done(self: KBox<Self>, bio: Bio<P>, status: BlkStatus);
}

struct Context<P, D> {
    bio: Bio<P>,
    done: KBox<D>,
    /// Keeps the device open.
    dev: Option<Dev>,
    set: Arc<Set>,
    live: Live,
}

/// # Safety
///
/// For the block layer only, with a clone that [`BioSet::clone_bio`] made.
unsafe extern "C" fn end_io<P, D: BioDone<P>>(clone: *mut bindings::bio) {
    // SAFETY: It is told once, and the context was given to it. The set is valid, as the context
    // has a reference to it.
    let (status, context) = unsafe {
        let status = BlkStatus((*clone).bi_status);
        let context = KBox::from_raw((*clone).bi_private.cast::<Context<P, D>>());
        bindings::bio_put(clone);
        (status, context)
    };
    let Context {
        bio,
        done,
        dev,
        set,
        live,
    } = KBox::into_inner(context);
    drop((dev, set));
    done.done(bio, status);
    drop(live);
}

/// A clone that was not submitted yet; one that is dropped ends with an I/O error.
pub struct AsyncBio<P, D: BioDone<P>> {
    clone: NonNull<bindings::bio>,
    _context: PhantomData<KBox<Context<P, D>>>,
}

// SAFETY: Bios belong to no thread, and what they come with is `Send`.
unsafe impl<P: Send, D: BioDone<P>> Send for AsyncBio<P, D> {}

impl<P, D: BioDone<P>> AsyncBio<P, D> {
    /// Sends it to `sector` of a device, when submitted.
    pub fn remap(&mut self, dev: &Dev, sector: Sector) {
        // SAFETY: The clone is ours, and so is its context. The device stays open, as the context
        // has it.
        unsafe {
            let clone = self.clone.as_mut();
            (*clone.bi_private.cast::<Context<P, D>>()).dev = Some(dev.clone());
            bindings::dm_rs_helper_bio_set_dev(clone, dev.bdev());
            clone.bi_iter.bi_sector = sector;
        }
    }

    /// Leaves out what is beyond the first `sectors`; does nothing if it has no more.
    pub fn truncate(&mut self, sectors: Sector) {
        // SAFETY: The clone is ours.
        let iter = unsafe { &mut self.clone.as_mut().bi_iter };
        if sectors < Sector::from(iter.bi_size >> SECTOR_SHIFT) {
            iter.bi_size = (sectors << SECTOR_SHIFT) as u32;
        }
    }

    /// Submits it, or ends it with an I/O error if it was not remapped.
    pub fn submit(self) {
        // SAFETY: The clone is ours, and so is its context.
        let remapped = unsafe {
            (*self.clone.as_ref().bi_private.cast::<Context<P, D>>())
                .dev
                .is_some()
        };
        if remapped {
            let clone = core::mem::ManuallyDrop::new(self).clone;
            // SAFETY: The clone was ours, and is for an open device.
            unsafe { bindings::submit_bio_noacct(clone.as_ptr()) };
        }
    }
}

impl<P, D: BioDone<P>> Drop for AsyncBio<P, D> {
    fn drop(&mut self) {
        // SAFETY: The clone is ours.
        unsafe {
            self.clone.as_mut().bi_status = BlkStatus::IOERR.0;
            bindings::bio_endio(self.clone.as_ptr());
        }
    }
}
