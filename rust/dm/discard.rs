// SPDX-License-Identifier: GPL-2.0

//! Discards of parts of a device.

use crate::{
    bindings,
    live::Live,
    BlkStatus,
    Dev,
    Sector, //
};
use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    alloc::flags::{
        __GFP_NOWARN, //
        GFP_NOWAIT,
    },
    prelude::*, //
};

/// What is told when discards are done.
pub trait DiscardDone: Send + Sized + 'static {
    /// All discards have ended; `status` is the first error, if any. May be called in interrupt
    /// context.
    fn done(self: KBox<Self>, status: BlkStatus);
}

/// A row of discards that end together.
///
/// Each [`Discard::issue`] starts a discard; [`Discard::finish`] lets the whole end. Put it in
/// [`with_plug`](crate::with_plug) to have them sent in a batch. One that is dropped is finished.
pub struct Discard<T: DiscardDone> {
    /// Ends after all others.
    parent: NonNull<bindings::bio>,
    /// The latest one, not submitted yet; null if there is none.
    last: *mut bindings::bio,
    _t: core::marker::PhantomData<KBox<Context<T>>>,
}

struct Context<T> {
    dev: Dev,
    value: ManuallyDrop<KBox<T>>,
    live: Live,
}

// SAFETY: Bios belong to no thread, and what is told is `Send`.
unsafe impl<T: DiscardDone> Send for Discard<T> {}

impl<T: DiscardDone> Discard<T> {
    /// A row for a device, without discards so far.
    ///
    /// Gives `value` back if there is no memory for it, which is not waited for.
    pub fn new(dev: &Dev, value: KBox<T>) -> Result<Self, KBox<T>> {
        let Ok(place) = KBox::<Context<T>>::new_uninit(GFP_NOWAIT | __GFP_NOWARN) else {
            return Err(value);
        };
        let context = KBox::write(
            place,
            Context {
                dev: dev.clone(),
                value: ManuallyDrop::new(value),
                live: Live::new(),
            },
        );
        // SAFETY: There are no vectors, no device and the kernel's own set. What that keeps is not
        // waited for: others that have it may wait for the caller.
        let parent = unsafe {
            bindings::bio_alloc_bioset(
                core::ptr::null_mut(),
                0,
                bindings::req_op_REQ_OP_DISCARD,
                bindings::GFP_NOWAIT | bindings::__GFP_NOWARN,
                &raw mut bindings::fs_bio_set,
            )
        };
        let Some(mut parent) = NonNull::new(parent) else {
            let Context { value, .. } = KBox::into_inner(context);
            return Err(ManuallyDrop::into_inner(value));
        };
        // SAFETY: It is new and ours.
        unsafe {
            let bio = parent.as_mut();
            bio.bi_end_io = Some(Self::end_io);
            bio.bi_private = KBox::into_raw(context).cast();
        }
        Ok(Self {
            parent,
            last: core::ptr::null_mut(),
            _t: core::marker::PhantomData,
        })
    }

    /// # Safety
    ///
    /// For the block layer only, with a parent that `new` made.
    unsafe extern "C" fn end_io(bio: *mut bindings::bio) {
        // SAFETY: It is told once, and the context was given to it by `new`.
        let (status, context) = unsafe {
            let status = BlkStatus((*bio).bi_status);
            let context = KBox::from_raw((*bio).bi_private.cast::<Context<T>>());
            bindings::bio_put(bio);
            (status, context)
        };
        let Context { dev, value, live } = KBox::into_inner(context);
        drop(dev);
        ManuallyDrop::into_inner(value).done(status);
        drop(live);
    }

    /// What will be told.
    pub fn value(&self) -> &T {
        // SAFETY: The parent has not ended, so the context is valid, and nobody else uses it before.
        unsafe { &(*self.parent.as_ref().bi_private.cast::<Context<T>>()).value }
    }

    /// Discards `len` sectors from `sector` on; as many discards as the device's limits ask for. Where there is no memory
    /// for one, which is not waited for, the rest stays as it is.
    pub fn issue(&mut self, sector: Sector, len: Sector) {
        // SAFETY: The parent has not ended, so the context is valid; and the device is open, as the
        // context has it. `last` is null or the discard that the function gave before.
        unsafe {
            let context = self.parent.as_ref().bi_private.cast::<Context<T>>();
            bindings::__blkdev_issue_discard(
                (*context).dev.bdev(),
                sector,
                len,
                bindings::GFP_NOWAIT | bindings::__GFP_NOWARN,
                &mut self.last,
            );
        }
    }

    /// Lets the row end when all discards have; with `err` if given and they do not fail
    /// themselves.
    pub fn finish(mut self, err: Option<Error>) {
        if let Some(err) = err {
            // SAFETY: The parent has not ended, and no discard that could set its status was
            // submitted with it as the target: only the last one is, below.
            unsafe { self.parent.as_mut().bi_status = BlkStatus::from_error(err).0 };
        }
    }
}

impl<T: DiscardDone> Drop for Discard<T> {
    fn drop(&mut self) {
        // SAFETY: The last discard is ours and not submitted. The parent is told when it has ended,
        // and all before it. The parent is ours; it ends when this and the last discard have.
        unsafe {
            if !self.last.is_null() {
                bindings::bio_chain(self.last, self.parent.as_ptr());
                bindings::submit_bio(self.last);
            }
            bindings::bio_endio(self.parent.as_ptr());
        }
    }
}
