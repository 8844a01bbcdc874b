// SPDX-License-Identifier: GPL-2.0

//! A target's handle to the core.

use crate::{
    bindings,
    lease::Lease,
    MdId,
    Sector, //
};
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// What a target knows of its place in a table, and what it may ask of the core.
///
/// [`Ctr::handle`] gives it out. It can be cloned and kept anywhere: once the target is destroyed,
/// the functions that need the target do nothing. Destruction waits for calls that are under way.
///
/// [`Ctr::handle`]: crate::Ctr::handle
#[derive(Clone)]
pub struct Ti(Arc<Inner>);

#[pin_data]
struct Inner {
    begin: Sector,
    len: Sector,
    md: MdId,
    name: [u8; 16],
    #[pin]
    target: Lease<bindings::dm_target>,
}

impl Ti {
    /// # Safety
    ///
    /// `ti` must be valid until [`Ti::revoke`] returns.
    pub(crate) unsafe fn new(ti: NonNull<bindings::dm_target>) -> Result<Self> {
        // SAFETY: `ti` is valid and in a table, which belongs to a mapped device.
        let (begin, len, md) = unsafe {
            let ti = ti.as_ref();
            (ti.begin, ti.len, bindings::dm_table_get_md(ti.table))
        };
        let mut name = [0; 16];
        // SAFETY: The mapped device is valid as its table is, its name is a C string.
        let from = unsafe { CStr::from_char_ptr(bindings::dm_device_name(md)) };
        for (to, from) in name.iter_mut().zip(from.to_bytes()) {
            *to = *from;
        }
        Ok(Self(Arc::pin_init(
            pin_init!(Inner {
                begin,
                len,
                md: MdId::from_raw(md),
                name,
                // SAFETY: By the function's requirements. What is called with it takes any thread.
                target <- unsafe { Lease::new(ti) },
            }),
            GFP_KERNEL,
        )?))
    }

    /// As `new`, for a target that is in no table. Nothing but its place may be asked for.
    ///
    /// # Safety
    ///
    /// `ti` must be valid until [`Ti::revoke`] returns.
    #[cfg(dm_thin_kunit)]
    pub(crate) unsafe fn without_table(ti: NonNull<bindings::dm_target>) -> Result<Self> {
        Ok(Self(Arc::pin_init(
            pin_init!(Inner {
                begin: 0,
                len: 0,
                md: MdId::from_raw(core::ptr::null()),
                name: [0; 16],
                // SAFETY: By the function's requirements.
                target <- unsafe { Lease::new(ti) },
            }),
            GFP_KERNEL,
        )?))
    }

    /// Waits for the calls under way; later ones do nothing.
    ///
    /// Suspends that nobody resumed are resumed, as nobody can any longer.
    pub(crate) fn revoke(&self) {
        // SAFETY: The lease gives the target, and calls this once for each suspend that is left.
        self.0.target.revoke(|ti| unsafe { Self::raw_resume(ti) });
    }

    /// Ends an internal suspend.
    ///
    /// # Safety
    ///
    /// The target must be valid, and its mapped device have an internal suspend that nobody else ends.
    unsafe fn raw_resume(ti: *mut bindings::dm_target) {
        // SAFETY: The target is valid, so its table and the mapped device are, too. The core's count of internal
        // suspends is not zero by the function's requirements.
        unsafe { bindings::dm_internal_resume(bindings::dm_table_get_md((*ti).table)) };
    }

    /// Calls `f` with the target, which stays until it returns; no lock is held, so calls nest.
    fn with<R>(&self, f: impl FnOnce(*mut bindings::dm_target) -> R) -> Option<R> {
        self.0.target.with(f)
    }

    /// Where the target begins in its mapped device.
    #[inline]
    pub fn begin(&self) -> Sector {
        self.0.begin
    }

    /// The target's length.
    #[inline]
    #[expect(clippy::len_without_is_empty)]
    pub fn len(&self) -> Sector {
        self.0.len
    }

    /// The identity of the target's mapped device.
    pub fn md_id(&self) -> MdId {
        self.0.md
    }

    /// The device's name in log lines, such as `252:4`; C's `dm_device_name`.
    pub fn name(&self) -> &str {
        let name = self.0.name.split(|&b| b == 0).next().unwrap_or_default();
        core::str::from_utf8(name).unwrap_or("?")
    }

    /// Whether both belong to the same target.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Tells user space that something happened, like `dm_table_event`.
    pub fn event(&self) {
        // SAFETY: The target and so its table are valid until the call ends.
        self.with(|ti| unsafe { bindings::dm_table_event((*ti).table) });
    }

    /// Whether the device is suspended.
    pub fn is_suspended(&self) -> bool {
        // SAFETY: The target is valid until the call ends.
        self.with(|ti| unsafe { bindings::dm_suspended(ti) != 0 })
            .unwrap_or(true)
    }

    /// Whether a suspend that does not flush is under way: held bios shall be requeued.
    pub fn is_noflush_suspending(&self) -> bool {
        // SAFETY: The target is valid until the call ends.
        self.with(|ti| unsafe { bindings::dm_noflush_suspending(ti) != 0 })
            .unwrap_or(false)
    }

    /// Suspends the mapped device without user space seeing it, like `dm_internal_suspend_noflush`.
    ///
    /// It stays so until as many calls of [`Ti::internal_resume`] were made, or the target is
    /// destroyed. Not to be called by the target itself, but by the one below it.
    pub fn internal_suspend_noflush(&self) {
        // SAFETY: The lease gives a valid target, so its table and the mapped device are valid, too.
        self.0.target.suspend(|ti| unsafe {
            bindings::dm_internal_suspend_noflush(bindings::dm_table_get_md((*ti).table));
        });
    }

    /// Ends one [`Ti::internal_suspend_noflush`] of this target; does nothing if there is none.
    pub fn internal_resume(&self) {
        // SAFETY: The lease gives the target, and calls this for a suspend of this handle that is left.
        self.0.target.resume(|ti| unsafe { Self::raw_resume(ti) });
    }
}
