// SPDX-License-Identifier: GPL-2.0

//! Mutexes in statics.

use core::{
    cell::UnsafeCell,
    mem::MaybeUninit, //
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
        LockClassKey,
        Mutex,
        MutexGuard, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    types::Opaque, //
};

const NEW: u32 = 0;
const BUSY: u32 = 1;
const READY: u32 = 2;

/// A mutex for a `static`, which initialises itself when it is first locked.
///
/// That is what it has over the kernel crate's global locks, whose users must promise to initialise them, which is
/// `unsafe`. Its content is never dropped: leave nothing in it when the module is unloaded.
///
/// ```ignore
/// static TABLE: StaticMutex<KVec<u32>> = StaticMutex::new(KVec::new(), c"table");
/// ```
///
/// # Invariants
///
/// If `state` is [`READY`], `mutex` is initialised. If it is [`NEW`], there is a value in `data`.
pub struct StaticMutex<T> {
    state: Atomic<u32>,
    mutex: Opaque<Mutex<T>>,
    key: LockClassKey,
    name: &'static CStr,
    /// What goes into the mutex.
    data: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: All that can be done with it on several threads is to use a mutex for a `T` that can be sent. Until it is
// there, only the one thread that makes it uses `data`.
unsafe impl<T: Send> Sync for StaticMutex<T> {}

impl<T> StaticMutex<T> {
    /// A mutex, to be put into a `static`.
    pub const fn new(data: T, name: &'static CStr) -> Self {
        // INVARIANT: There is a value.
        Self {
            state: Atomic::new(NEW),
            mutex: Opaque::uninit(),
            // SAFETY: Only `lock` uses the key, which takes a static; and those are not dropped.
            key: unsafe { LockClassKey::new_static() },
            name,
            data: UnsafeCell::new(MaybeUninit::new(data)),
        }
    }

    fn init(&'static self) {
        if self.state.cmpxchg(NEW, BUSY, Relaxed).is_ok() {
            // SAFETY: By the type invariants there is a value, which is taken once, as nobody else gets here.
            let data = unsafe { (*self.data.get()).assume_init_read() };
            let mutex = Mutex::new(data, self.name, Pin::static_ref(&self.key));
            // SAFETY: Nobody uses the mutex before it is ready. It is static, so it stays where it is.
            unsafe { pin_init::raw_init(self.mutex.get(), mutex) };
            // INVARIANT: The mutex was just initialised.
            self.state.store(READY, Release);
        }
        while self.state.load(Acquire) != READY {
            // Another thread is just there.
            fsleep(Delta::from_millis(1));
        }
    }

    /// Waits for the mutex.
    pub fn lock(&'static self) -> MutexGuard<'static, T> {
        if self.state.load(Acquire) != READY {
            self.init();
        }
        // SAFETY: It is initialised by the type invariants, and static.
        unsafe { &*self.mutex.get() }.lock()
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
