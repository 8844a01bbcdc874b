// SPDX-License-Identifier: GPL-2.0

//! Mutexes in statics.

use crate::bindings;
use core::{
    cell::UnsafeCell,
    ops::{
        Deref,
        DerefMut, //
    },
};
use kernel::{
    prelude::*,
    str::CStr,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        LockClassKey, //
    },
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

const NEW: u32 = 0;
const BUSY: u32 = 1;
const READY: u32 = 2;

/// A mutex for a `static`, which initialises itself when it is first locked.
///
/// The content of a static is never dropped: leave nothing in it when the module is unloaded.
///
/// ```ignore
/// static TABLE: StaticMutex<KVec<u32>> = StaticMutex::new(KVec::new(), c"table");
/// ```
pub struct StaticMutex<T> {
    state: Atomic<u32>,
    mutex: Opaque<bindings::mutex>,
    key: LockClassKey,
    name: &'static CStr,
    data: UnsafeCell<T>,
}

// SAFETY: The mutex gives out one `&mut T` at a time, on any thread.
unsafe impl<T: Send> Sync for StaticMutex<T> {}

impl<T> StaticMutex<T> {
    /// A mutex, to be put into a `static`.
    pub const fn new(data: T, name: &'static CStr) -> Self {
        Self {
            state: Atomic::new(NEW),
            mutex: Opaque::uninit(),
            // SAFETY: Only `lock` uses the key, which takes a static; and those are not dropped.
            key: unsafe { LockClassKey::new_static() },
            name,
            data: UnsafeCell::new(data),
        }
    }

    fn init(&'static self) {
        if self.state.cmpxchg(NEW, BUSY, Relaxed).is_ok() {
            // SAFETY: Nobody else gets here, and nobody uses the mutex before it is ready. The
            // mutex, its name and its class are static.
            unsafe {
                bindings::__mutex_init(
                    self.mutex.get(),
                    self.name.as_char_ptr(),
                    Pin::static_ref(&self.key).as_ptr(),
                );
            }
            self.state.store(READY, Release);
        }
        while self.state.load(Acquire) != READY {
            // SAFETY: Whoever locks a mutex may sleep.
            unsafe { bindings::msleep(1) };
        }
    }

    /// Waits for the mutex.
    pub fn lock(&'static self) -> StaticMutexGuard<T> {
        if self.state.load(Acquire) != READY {
            self.init();
        }
        // SAFETY: It is initialised.
        unsafe { bindings::mutex_lock(self.mutex.get()) };
        StaticMutexGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }
}

/// The hold on a [`StaticMutex`].
#[must_use = "the lock is released when this is dropped"]
pub struct StaticMutexGuard<T: 'static> {
    lock: &'static StaticMutex<T>,
    _not_send: NotThreadSafe,
}

// SAFETY: Another thread may share what it guards if it may share the content.
unsafe impl<T: Sync> Sync for StaticMutexGuard<T> {}

impl<T> Deref for StaticMutexGuard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: We hold the mutex.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for StaticMutexGuard<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: We hold the mutex, and `self` is borrowed for it.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for StaticMutexGuard<T> {
    fn drop(&mut self) {
        // SAFETY: We hold the mutex, on this thread as guards are not `Send`.
        unsafe { bindings::mutex_unlock(self.lock.mutex.get()) };
    }
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_static_mutex)]
mod tests {
    use super::*;

    static COUNT: StaticMutex<u32> = StaticMutex::new(7, c"dm_test_static_mutex");

    #[test]
    fn keeps_its_content() {
        *COUNT.lock() += 1;
        assert_eq!(*COUNT.lock(), 8);
    }
}
