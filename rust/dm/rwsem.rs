// SPDX-License-Identifier: GPL-2.0

//! Reader-writer semaphores.

use crate::{
    bindings,
    NoIo, //
};
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
    sync::LockClassKey,
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

/// Creates a [`RwSemaphore`] initialiser with the given content and name, and a lock class of its
/// own.
///
/// [`RwSemaphore`]: crate::RwSemaphore
#[macro_export]
macro_rules! new_rwsem {
    ($inner:expr $(, $name:literal)? $(,)?) => {
        $crate::RwSemaphore::new(
            $inner, ::kernel::optional_name!($($name)?), ::kernel::static_lock_class!())
    };
}

/// A lock that sleeps, with many readers or one writer; C's `struct rw_semaphore`.
///
/// A thread must not take it twice, not even for reading.
#[pin_data]
pub struct RwSemaphore<T: ?Sized> {
    #[pin]
    sem: Opaque<bindings::rw_semaphore>,
    data: UnsafeCell<T>,
}

// SAFETY: It can be moved to another thread if its content can.
unsafe impl<T: ?Sized + Send> Send for RwSemaphore<T> {}
// SAFETY: The semaphore gives out one `&mut T` or many `&T`, on any thread.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwSemaphore<T> {}

impl<T> RwSemaphore<T> {
    /// An initialiser; see [`new_rwsem!`](crate::new_rwsem).
    pub fn new(
        data: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes, name and key live forever.
            sem <- Opaque::ffi_init(|slot| unsafe {
                bindings::__init_rwsem(slot, name.as_char_ptr(), key.as_ptr())
            }),
            data: UnsafeCell::new(data),
        })
    }
}

impl<T: ?Sized> RwSemaphore<T> {
    /// Waits for the writer.
    pub fn read(&self) -> ReadGuard<'_, T> {
        // SAFETY: Initialised by `new`.
        unsafe { bindings::down_read(self.sem.get()) };
        ReadGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Fails if there is a writer or one waits.
    pub fn try_read(&self) -> Option<ReadGuard<'_, T>> {
        // SAFETY: Initialised by `new`.
        (unsafe { bindings::down_read_trylock(self.sem.get()) } == 1).then(|| ReadGuard {
            lock: self,
            _not_send: NotThreadSafe,
        })
    }

    /// Waits for all readers and the writer.
    pub fn write(&self) -> WriteGuard<'_, T> {
        // SAFETY: Initialised by `new`.
        unsafe { bindings::down_write(self.sem.get()) };
        WriteGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Fails if there is a reader or a writer.
    pub fn try_write(&self) -> Option<WriteGuard<'_, T>> {
        // SAFETY: Initialised by `new`.
        (unsafe { bindings::down_write_trylock(self.sem.get()) } == 1).then(|| WriteGuard {
            lock: self,
            _not_send: NotThreadSafe,
        })
    }

    /// Like [`RwSemaphore::write`], and no allocation starts I/O while the guard lives.
    pub fn write_noio(&self) -> WriteNoIoGuard<'_, T> {
        let guard = self.write();
        WriteNoIoGuard {
            _noio: NoIo::enter(),
            guard,
        }
    }
}

/// A reader's share of a [`RwSemaphore`].
#[must_use = "the lock is released when this is dropped"]
pub struct ReadGuard<'a, T: ?Sized> {
    lock: &'a RwSemaphore<T>,
    _not_send: NotThreadSafe,
}

// SAFETY: Another thread may share what it guards if it may share the content.
unsafe impl<T: ?Sized + Sync> Sync for ReadGuard<'_, T> {}

impl<T: ?Sized> Deref for ReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: We are a reader, so there is no writer.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: We are a reader, of this thread as guards are not `Send`.
        unsafe { bindings::up_read(self.lock.sem.get()) };
    }
}

/// The writer's hold on a [`RwSemaphore`].
#[must_use = "the lock is released when this is dropped"]
pub struct WriteGuard<'a, T: ?Sized> {
    lock: &'a RwSemaphore<T>,
    _not_send: NotThreadSafe,
}

// SAFETY: Another thread may share what it guards if it may share the content.
unsafe impl<T: ?Sized + Sync> Sync for WriteGuard<'_, T> {}

impl<'a, T: ?Sized> WriteGuard<'a, T> {
    /// Goes on as a reader, without a gap.
    pub fn downgrade(self) -> ReadGuard<'a, T> {
        let this = core::mem::ManuallyDrop::new(self);
        // SAFETY: We are the writer, of this thread as guards are not `Send`, and become a reader.
        unsafe { bindings::downgrade_write(this.lock.sem.get()) };
        ReadGuard {
            lock: this.lock,
            _not_send: NotThreadSafe,
        }
    }
}

impl<T: ?Sized> Deref for WriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: We are the writer.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: We are the writer, and `self` is borrowed for it.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T: ?Sized> Drop for WriteGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: We are the writer, of this thread as guards are not `Send`.
        unsafe { bindings::up_write(self.lock.sem.get()) };
    }
}

/// The writer's hold on a [`RwSemaphore`], with a [`NoIo`] scope.
#[must_use = "the lock is released when this is dropped"]
pub struct WriteNoIoGuard<'a, T: ?Sized> {
    _noio: NoIo,
    guard: WriteGuard<'a, T>,
}

impl<T: ?Sized> Deref for WriteNoIoGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T: ?Sized> DerefMut for WriteNoIoGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_rwsem)]
mod tests {
    use super::*;

    #[test]
    fn many_readers_or_one_writer() -> Result {
        let sem = KBox::pin_init(new_rwsem!(1, "dm_test_rwsem"), GFP_KERNEL)?;
        {
            let a = sem.read();
            assert_eq!(*a, 1);
            assert!(sem.try_write().is_none());
        }
        {
            let mut w = sem.write();
            *w = 2;
            assert!(sem.try_read().is_none());
            assert!(sem.try_write().is_none());
            let r = w.downgrade();
            assert_eq!(*r, 2);
        }
        *sem.write_noio() += 1;
        assert!(sem.try_write().is_some());
        assert!(sem.try_read().map(|r| *r) == Some(3));
        Ok(())
    }
}
