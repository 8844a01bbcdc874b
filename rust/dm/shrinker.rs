// SPDX-License-Identifier: GPL-2.0

//! Giving memory back when there is too little of it.

use crate::bindings;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    str::CStr,
    sync::Arc,
    types::ForeignOwnable, //
};

/// A cache that gives memory back.
///
/// Both functions are called from within allocations, in any thread that may wait for memory, and so with any
/// lock held that such a thread has. They must not allocate, and take a lock only if that needs no waiting, or
/// if nobody allocates with it.
pub trait Shrink: Send + Sync + 'static {
    /// How many objects could be given back, roughly.
    fn count(&self) -> usize;

    /// Looks at up to `n` objects and gives back those that are not in use. How many there were; `None` if none
    /// can be had now.
    fn scan(&self, n: usize) -> Option<usize>;
}

/// How much memory there is, in bytes.
pub fn total_memory() -> u64 {
    // SAFETY: It only reads a number.
    unsafe { bindings::dm_rs_helper_total_memory() }
}

/// A cache known to the kernel's memory management, until this is dropped.
///
/// C header: [`include/linux/shrinker.h`](srctree/include/linux/shrinker.h)
pub struct Shrinker<S: Shrink> {
    ptr: NonNull<bindings::shrinker>,
    _cache: PhantomData<Arc<S>>,
}

// SAFETY: It only stands for the registration, which may end on any thread.
unsafe impl<S: Shrink> Send for Shrinker<S> {}
// SAFETY: There are no `&self` methods.
unsafe impl<S: Shrink> Sync for Shrinker<S> {}

impl<S: Shrink> Shrinker<S> {
    /// Makes `cache` known by `name`.
    pub fn new(name: &'static CStr, cache: Arc<S>) -> Result<Self> {
        // SAFETY: The format takes one string.
        let ptr = unsafe { bindings::shrinker_alloc(0, c"%s".as_char_ptr(), name.as_char_ptr()) };
        let ptr = NonNull::new(ptr).ok_or(ENOMEM)?;
        // SAFETY: It is new and not registered yet. The cache stays as long as it is, see `drop`.
        unsafe {
            let shrinker = ptr.as_ptr();
            (*shrinker).count_objects = Some(Self::count_objects);
            (*shrinker).scan_objects = Some(Self::scan_objects);
            (*shrinker).seeks = bindings::DEFAULT_SEEKS as c_int;
            (*shrinker).private_data = cache.into_foreign().cast();
            bindings::shrinker_register(shrinker);
        }
        Ok(Self {
            ptr,
            _cache: PhantomData,
        })
    }

    /// # Safety
    ///
    /// For the kernel's memory management only.
    unsafe extern "C" fn count_objects(
        shrinker: *mut bindings::shrinker,
        _: *mut bindings::shrink_control,
    ) -> c_ulong {
        // SAFETY: Set by `new`, and there until the shrinker is freed, which waits for us.
        let cache = unsafe { Arc::<S>::borrow((*shrinker).private_data.cast()) };
        // Zero says that there is nothing for now.
        cache.count().min(isize::MAX as usize)
    }

    /// # Safety
    ///
    /// For the kernel's memory management only.
    unsafe extern "C" fn scan_objects(
        shrinker: *mut bindings::shrinker,
        control: *mut bindings::shrink_control,
    ) -> c_ulong {
        // SAFETY: As in `count_objects`; the control is valid during the call.
        let (cache, n) = unsafe {
            (
                Arc::<S>::borrow((*shrinker).private_data.cast()),
                (*control).nr_to_scan,
            )
        };
        cache.scan(n).unwrap_or(bindings::SHRINK_STOP as c_ulong)
    }
}

impl<S: Shrink> Drop for Shrinker<S> {
    fn drop(&mut self) {
        // SAFETY: Set by `new`. When the shrinker is freed, which waits for those who use it, the reference is ours
        // again.
        unsafe {
            let cache = (*self.ptr.as_ptr()).private_data;
            bindings::shrinker_free(self.ptr.as_ptr());
            drop(Arc::<S>::from_foreign(cache.cast()));
        }
    }
}
