// SPDX-License-Identifier: GPL-2.0

//! Memory pools: allocation that always succeeds in the end.

use crate::bindings;
use core::{
    marker::PhantomData,
    mem::{
        self,
        ManuallyDrop, //
    },
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull,
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// A pool of memory for values of type `T`, with a reserve that keeps I/O going without memory.
///
/// It can be cloned; the reserve is freed with the last clone and the last value.
pub struct Mempool<T> {
    pool: Arc<Raw>,
    _t: PhantomData<fn() -> T>,
}

/// # Invariants
///
/// A valid pool.
struct Raw(NonNull<bindings::mempool>);

// SAFETY: Pools can be used and destroyed on any thread.
unsafe impl Send for Raw {}
// SAFETY: As above, and on several at once.
unsafe impl Sync for Raw {}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: Valid by the type invariants; no element is left, as each holds a reference.
        unsafe { bindings::mempool_destroy(self.0.as_ptr()) };
    }
}

/// What an element of a pool is.
struct Element<T> {
    pool: Arc<Raw>,
    value: T,
}

impl<T> Clone for Mempool<T> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            _t: PhantomData,
        }
    }
}

impl<T> Mempool<T> {
    /// A pool with a reserve of `min` values.
    pub fn new(min: u32) -> Result<Self> {
        const { assert!(align_of::<Element<T>>() <= 8) };
        let min = c_int::try_from(min).map_err(|_| EINVAL)?;
        // SAFETY: The functions take the size as their data, as a pointer.
        let pool = unsafe {
            bindings::mempool_create_node_noprof(
                min,
                Some(bindings::mempool_kmalloc),
                Some(bindings::mempool_kfree),
                core::ptr::without_provenance_mut(size_of::<Element<T>>()),
                bindings::GFP_KERNEL,
                bindings::NUMA_NO_NODE,
            )
        };
        Ok(Self {
            // INVARIANT: Just created. Should the allocation fail, it is dropped.
            pool: Arc::new(Raw(NonNull::new(pool).ok_or(ENOMEM)?), GFP_KERNEL)?,
            _t: PhantomData,
        })
    }

    fn raw_alloc(&self, gfp: bindings::gfp_t) -> Option<NonNull<Element<T>>> {
        // SAFETY: Valid by the invariants of `Raw`.
        let ptr = unsafe { bindings::mempool_alloc_noprof(self.pool.0.as_ptr(), gfp) };
        NonNull::new(ptr.cast())
    }

    fn fill(&self, place: NonNull<Element<T>>, value: T) -> PoolBox<T> {
        // SAFETY: `place` is new memory for an element, of the pool's size; `kmalloc` aligns it to
        // eight bytes at least, which `new` checks to be enough.
        unsafe {
            place.write(Element {
                pool: self.pool.clone(),
                value,
            });
        }
        // INVARIANT: Just written.
        PoolBox(place, PhantomData)
    }

    /// Stores a value; waits for memory without starting I/O.
    ///
    /// It cannot fail as long as the values of the pool are dropped some time.
    pub fn alloc(&self, value: T) -> PoolBox<T> {
        loop {
            // The pool waits for an element rather than fail.
            if let Some(place) = self.raw_alloc(bindings::GFP_NOIO) {
                return self.fill(place, value);
            }
        }
    }

    /// Stores a value without waiting; gives it back if there is no memory. For any context.
    pub fn try_alloc(&self, value: T) -> Result<PoolBox<T>, T> {
        match self.raw_alloc(bindings::GFP_NOWAIT) {
            Some(place) => Ok(self.fill(place, value)),
            None => Err(value),
        }
    }
}

/// A value in memory of a [`Mempool`].
///
/// # Invariants
///
/// An element that is ours.
pub struct PoolBox<T>(NonNull<Element<T>>, PhantomData<Element<T>>);

// SAFETY: It owns a `T`, and what else it has is `Send`.
unsafe impl<T: Send> Send for PoolBox<T> {}
// SAFETY: `&PoolBox` only gives `&T`.
unsafe impl<T: Sync> Sync for PoolBox<T> {}

impl<T> PoolBox<T> {
    /// Takes the value out.
    pub fn into_inner(self) -> T {
        let this = ManuallyDrop::new(self);
        // SAFETY: By the type invariants the element is ours, and it is not used again.
        let Element { pool, value } = unsafe { this.0.read() };
        // SAFETY: The element is of this pool, and holds nothing any more.
        unsafe { bindings::mempool_free(this.0.as_ptr().cast(), pool.0.as_ptr()) };
        value
    }

    /// Gives up ownership, until [`PoolBox::from_raw`].
    pub(crate) fn into_raw(self) -> *mut T {
        let this = ManuallyDrop::new(self);
        // SAFETY: By the type invariants the element is valid.
        unsafe { &raw mut (*this.0.as_ptr()).value }
    }

    /// # Safety
    ///
    /// `ptr` must be of [`PoolBox::into_raw`], which must not be undone twice.
    pub(crate) unsafe fn from_raw(ptr: *mut T) -> Self {
        // SAFETY: By the function's requirements it points into an element, which is not null.
        let element = unsafe {
            NonNull::new_unchecked(
                ptr.byte_sub(mem::offset_of!(Element<T>, value))
                    .cast::<Element<T>>(),
            )
        };
        // INVARIANT: By the function's requirements.
        Self(element, PhantomData)
    }
}

impl<T> Deref for PoolBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: Ours by the type invariants.
        unsafe { &self.0.as_ref().value }
    }
}

impl<T> DerefMut for PoolBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: Ours by the type invariants.
        unsafe { &mut self.0.as_mut().value }
    }
}

impl<T> Drop for PoolBox<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the element is ours, and it is not used again.
        let Element { pool, value } = unsafe { self.0.read() };
        drop(value);
        // SAFETY: The element is of this pool, and holds nothing any more.
        unsafe { bindings::mempool_free(self.0.as_ptr().cast(), pool.0.as_ptr()) };
    }
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_mempool)]
mod tests {
    use super::*;

    #[test]
    fn stores_and_drops() -> Result {
        let seen = Arc::new((), GFP_KERNEL)?;
        let pool = Mempool::new(4)?;
        let mut held = KVec::new();
        for i in 0..8 {
            held.push(pool.alloc((i, seen.clone())), GFP_KERNEL)?;
        }
        assert!(held.iter().enumerate().all(|(i, b)| (**b).0 == i));
        assert!(Arc::into_unique_or_drop(seen.clone()).is_none());
        let (last, clone) = held.pop().ok_or(EINVAL)?.into_inner();
        assert_eq!(last, 7);
        drop((clone, held));
        let raw = pool.alloc((9, seen.clone())).into_raw();
        // SAFETY: Just given up.
        let back = unsafe { PoolBox::from_raw(raw) };
        assert_eq!((*back).0, 9);
        drop(pool);
        drop(back);
        assert!(Arc::into_unique_or_drop(seen).is_some());
        Ok(())
    }

    #[test]
    fn does_not_wait() -> Result {
        let pool = Mempool::new(1)?;
        assert!(pool.try_alloc(5).map(|b| *b) == Ok(5));
        Ok(())
    }
}
