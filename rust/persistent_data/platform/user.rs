// SPDX-License-Identifier: GPL-2.0

//! User space, for tests and tools.

use std::cell::Cell;

use super::TryVec;
use crate::error::{
    Error,
    Result, //
};

pub use std::{
    boxed::Box,
    vec::Vec, //
};

/// As much of the kernel crate's atomics as is needed, over those of the standard library.
pub mod atomic {
    use std::sync::atomic::{
        AtomicBool,
        AtomicU64,
        Ordering, //
    };

    /// The one memory ordering that is needed: none.
    pub struct Relaxed;

    /// A number that threads share.
    pub struct Atomic<T: Number>(T::Repr);

    /// What [`Atomic`] is there for.
    pub trait Number {
        /// What it is stored as.
        type Repr;
    }

    impl Number for u64 {
        type Repr = AtomicU64;
    }

    impl Atomic<u64> {
        /// One that holds `v`.
        pub const fn new(v: u64) -> Self {
            Self(AtomicU64::new(v))
        }

        /// What it holds.
        pub fn load(&self, _: Relaxed) -> u64 {
            self.0.load(Ordering::Relaxed)
        }

        /// Holds `v` from now on.
        pub fn store(&self, v: u64, _: Relaxed) {
            self.0.store(v, Ordering::Relaxed);
        }

        /// Holds `v` from now on; what it held before is returned.
        pub fn xchg(&self, v: u64, _: Relaxed) -> u64 {
            self.0.swap(v, Ordering::Relaxed)
        }

        /// Holds `new` from now on if it holds `old`; otherwise what it holds is the error.
        pub fn cmpxchg(&self, old: u64, new: u64, _: Relaxed) -> Result<u64, u64> {
            let relaxed = Ordering::Relaxed;
            self.0.compare_exchange(old, new, relaxed, relaxed)
        }
    }

    /// A flag that threads share.
    pub struct AtomicFlag(AtomicBool);

    impl AtomicFlag {
        /// One that is `b`.
        pub const fn new(b: bool) -> Self {
            Self(AtomicBool::new(b))
        }

        /// Whether it is set.
        pub fn load(&self, _: Relaxed) -> bool {
            self.0.load(Ordering::Relaxed)
        }

        /// Sets or clears it.
        pub fn store(&self, b: bool, _: Relaxed) {
            self.0.store(b, Ordering::Relaxed);
        }
    }
}

thread_local! {
    /// How many more allocations of this thread succeed before one fails.
    static FAIL_AFTER: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Makes one allocation of this thread fail: the next one for zero, the one after that for one, and so on;
/// `None` lets all succeed.
///
/// Only for tests. What counts as an allocation is each call of [`TryVec`] that may need memory, and each
/// [`try_box`](super::try_box).
pub fn fail_allocation(after: Option<u64>) {
    FAIL_AFTER.with(|f| f.set(after));
}

/// Whether the failure that was last asked for is still to come.
pub fn allocation_failure_pending() -> bool {
    FAIL_AFTER.with(|f| f.get().is_some())
}

fn allocate() -> Result {
    FAIL_AFTER.with(|f| match f.get() {
        None => Ok(()),
        Some(0) => {
            f.set(None);
            Err(Error::NoMemory)
        }
        Some(n) => {
            f.set(Some(n - 1));
            Ok(())
        }
    })
}

impl<T> TryVec<T> for Vec<T> {
    fn try_with_room(n: usize) -> Result<Self> {
        allocate()?;
        let mut v = Vec::new();
        v.try_reserve_exact(n).map_err(|_| Error::NoMemory)?;
        Ok(v)
    }

    fn try_reserve_room(&mut self, n: usize) -> Result {
        if self.capacity().saturating_sub(self.len()) < n {
            allocate()?;
            self.try_reserve(n).map_err(|_| Error::NoMemory)?;
        }
        Ok(())
    }

    fn try_push(&mut self, x: T) -> Result {
        if self.len() == self.capacity() {
            allocate()?;
            self.try_reserve(1).map_err(|_| Error::NoMemory)?;
        }
        self.push(x);
        Ok(())
    }

    fn try_filled(x: T, n: usize) -> Result<Self>
    where
        T: Clone,
    {
        let mut v = Self::try_with_room(n)?;
        v.resize(n, x);
        Ok(v)
    }
}

pub(super) fn new_box<T>(x: T) -> Option<Box<T>> {
    allocate().ok()?;
    Some(Box::new(x))
}

/// CRC32C of `data` with all ones as the initial value and no final inversion.
pub fn crc32c(data: &[u8]) -> u32 {
    !::crc32c::crc32c(data)
}

impl std::error::Error for Error {}
