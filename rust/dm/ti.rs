// SPDX-License-Identifier: GPL-2.0

//! A target's handle to the core.

use crate::{
    bindings,
    MdId,
    Sector, //
};
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_condvar,
        new_mutex,
        Arc,
        CondVar,
        Mutex, //
    },
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
    /// Internal suspends of this handle that were not resumed yet.
    suspends: Atomic<i32>,
    #[pin]
    target: Mutex<Target>,
    /// Told when the last call under way ends.
    #[pin]
    unused: CondVar,
}

/// # Invariants
///
/// `ptr` is valid as long as it is there, or `calls` is not zero.
struct Target {
    ptr: Option<NonNull<bindings::dm_target>>,
    calls: usize,
}

// SAFETY: The functions of the core that are called with it take any thread.
unsafe impl Send for Target {}

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
                suspends: Atomic::new(0),
                // INVARIANT: By the function's requirements, as `revoke` waits.
                target <- new_mutex!(Target { ptr: Some(ti), calls: 0 }, "dm_target"),
                unused <- new_condvar!("dm_target"),
            }),
            GFP_KERNEL,
        )?))
    }

    /// Waits for the calls under way; later ones do nothing.
    ///
    /// Suspends that nobody resumed are resumed, as nobody can any longer.
    pub(crate) fn revoke(&self) {
        while self.take_suspend() {
            self.resume();
        }
        let mut target = self.0.target.lock();
        target.ptr = None;
        while target.calls != 0 {
            self.0.unused.wait(&mut target);
        }
    }

    /// Takes one suspend that was not resumed yet.
    fn take_suspend(&self) -> bool {
        let mut n = self.0.suspends.load(Relaxed);
        while n > 0 {
            match self.0.suspends.cmpxchg(n, n - 1, Relaxed) {
                Ok(_) => return true,
                Err(now) => n = now,
            }
        }
        false
    }

    fn resume(&self) {
        // SAFETY: The target, its table and the mapped device are valid by the invariants of
        // `Target`. The count of internal suspends is not zero, as one of this handle is left.
        self.with(|ti| unsafe {
            bindings::dm_internal_resume(bindings::dm_table_get_md((*ti).table))
        });
    }

    /// Calls `f` with the target, which stays until it returns; no lock is held, so calls nest.
    fn with<R>(&self, f: impl FnOnce(*mut bindings::dm_target) -> R) -> Option<R> {
        let ptr = {
            let mut target = self.0.target.lock();
            let ptr = target.ptr?;
            target.calls += 1;
            ptr
        };
        let r = f(ptr.as_ptr());
        let mut target = self.0.target.lock();
        target.calls -= 1;
        if target.calls == 0 {
            self.0.unused.notify_all();
        }
        Some(r)
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
        // SAFETY: The target and so its table are valid by the invariants of `Target`.
        self.with(|ti| unsafe { bindings::dm_table_event((*ti).table) });
    }

    /// Whether the device is suspended.
    pub fn is_suspended(&self) -> bool {
        // SAFETY: The target is valid by the invariants of `Target`.
        self.with(|ti| unsafe { bindings::dm_suspended(ti) != 0 })
            .unwrap_or(true)
    }

    /// Whether a suspend that does not flush is under way: held bios shall be requeued.
    pub fn is_noflush_suspending(&self) -> bool {
        // SAFETY: The target is valid by the invariants of `Target`.
        self.with(|ti| unsafe { bindings::dm_noflush_suspending(ti) != 0 })
            .unwrap_or(false)
    }

    /// Suspends the mapped device without user space seeing it, like `dm_internal_suspend_noflush`.
    ///
    /// It stays so until as many calls of [`Ti::internal_resume`] were made, or the target is
    /// destroyed. Not to be called by the target itself, but by the one below it.
    pub fn internal_suspend_noflush(&self) {
        // SAFETY: The target, its table and the mapped device are valid by the invariants of
        // `Target`.
        self.with(|ti| unsafe {
            bindings::dm_internal_suspend_noflush(bindings::dm_table_get_md((*ti).table));
            self.0.suspends.fetch_add(1, Relaxed);
        });
    }

    /// Ends one [`Ti::internal_suspend_noflush`] of this target; does nothing if there is none.
    pub fn internal_resume(&self) {
        if self.take_suspend() {
            self.resume();
        }
    }
}
