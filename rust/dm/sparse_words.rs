// SPDX-License-Identifier: GPL-2.0

//! Sparse arrays of words.

use crate::bindings;
use core::{
    mem::offset_of,
    ptr::NonNull, //
};
use kernel::{
    alloc::flags::{
        __GFP_NOWARN,
        __GFP_ZERO, //
        GFP_NOWAIT,
    },
    error::to_result,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            AtomicFlag,
            Relaxed, //
        },
        rcu, //
    },
    types::Opaque, //
};

/// An array of 64-bit words by number, of which only some pages exist.
///
/// It is read without locks, in RCU read-side critical sections. Pages may be added and removed at any time, by
/// several threads; who found a page just before it was removed goes on reading it for a moment, and what is
/// stored in it then is lost.
#[pin_data(PinnedDrop)]
pub struct SparseWords {
    /// By page number.
    #[pin]
    pages: Opaque<bindings::xarray>,
}

/// How many words a page has, so that it fits a page of memory together with what goes along.
pub const WORDS_PER_PAGE: usize = 504;

/// A page of words.
///
/// All bytes may be zero, which stands for words of zero.
#[repr(C)]
pub struct Words {
    rcu: Opaque<bindings::kvfree_rcu_head>,
    used: AtomicFlag,
    words: [Atomic<u64>; WORDS_PER_PAGE],
}

/// The bytes of memory that a page takes.
pub const PAGE_BYTES: usize = 4096;

const _: () = {
    assert!(size_of::<Words>() <= PAGE_BYTES);
    // The allocator finds the beginning from there.
    assert!(offset_of!(Words, rcu) == 0);
};

// SAFETY: Pages belong to no thread, and can be freed on any.
unsafe impl Send for SparseWords {}
// SAFETY: The array has a lock of its own for changes, and is read under RCU; the words are atomics.
unsafe impl Sync for SparseWords {}

impl Words {
    /// The words.
    #[inline]
    pub fn words(&self) -> &[Atomic<u64>; WORDS_PER_PAGE] {
        &self.words
    }

    /// Notes that the page is in use.
    #[inline]
    pub fn set_used(&self) {
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
    }

    /// Whether that was noted since it was last asked for.
    pub fn take_used(&self) -> bool {
        self.used.xchg(false, Relaxed)
    }
}

impl SparseWords {
    /// An array without pages.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes.
            pages <- Opaque::ffi_init(|slot| unsafe { bindings::xa_init_flags(slot, 0) }),
        })
    }

    /// Page number `page`, if there is one.
    #[inline]
    pub fn page<'a>(&self, page: usize, _rcu: &'a rcu::Guard) -> Option<&'a Words> {
        // SAFETY: Initialised by `new`.
        let found = unsafe { bindings::xa_load(self.pages.get(), page) };
        // SAFETY: All that is in the array are pages. One that is removed is not freed before the critical
        // section ends.
        NonNull::new(found.cast::<Words>()).map(|words| unsafe { words.as_ref() })
    }

    /// Adds page number `page`, all zeroes. Does not sleep.
    ///
    /// [`EBUSY`] if there is one, [`ENOMEM`].
    pub fn add_page(&self, page: usize) -> Result {
        let flags = GFP_NOWAIT | __GFP_NOWARN;
        // SAFETY: A page may be all zeroes.
        let words = unsafe { KBox::<Words>::new_uninit(flags | __GFP_ZERO)?.assume_init() };
        let words = KBox::into_raw(words);
        // SAFETY: The array is initialised, and its lock is held around the call as it must be.
        let result = to_result(unsafe {
            bindings::xa_lock(self.pages.get());
            let result = bindings::__xa_insert(
                self.pages.get(),
                page,
                words.cast(),
                bindings::GFP_NOWAIT | bindings::__GFP_NOWARN,
            );
            bindings::xa_unlock(self.pages.get());
            result
        });
        if result.is_err() {
            // SAFETY: It is not in the array, so it is still ours.
            drop(unsafe { KBox::from_raw(words) });
        }
        result
    }

    /// Removes page number `page`. Whether there was one.
    pub fn remove_page(&self, page: usize) -> bool {
        // SAFETY: Initialised by `new`.
        let words = unsafe { bindings::xa_erase(self.pages.get(), page) }.cast::<Words>();
        let found = !words.is_null();
        if found {
            // SAFETY: It was allocated with `KBox`, so by kmalloc, and is ours now, but for those who read it under
            // RCU, who are waited for. It needs no drop, and nobody uses the head otherwise.
            unsafe { bindings::kvfree_call_rcu((&raw mut (*words).rcu).cast(), words.cast()) };
        }
        found
    }

    /// The number of the first page from `page` on.
    pub fn next_page(&self, page: usize) -> Option<usize> {
        let mut index = page;
        // SAFETY: Initialised by `new`.
        let found = unsafe {
            bindings::xa_find(
                self.pages.get(),
                &mut index,
                usize::MAX,
                bindings::XA_PRESENT,
            )
        };
        (!found.is_null()).then_some(index)
    }
}

#[pinned_drop]
impl PinnedDrop for SparseWords {
    fn drop(self: Pin<&mut Self>) {
        let mut next = 0;
        while let Some(page) = self.next_page(next) {
            self.remove_page(page);
            next = page;
        }
        // SAFETY: Initialised by `new`, and not used again.
        unsafe { bindings::xa_destroy(self.pages.get()) };
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_sparse_words)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_and_go() -> Result {
        let array = KBox::pin_init(SparseWords::new(), GFP_KERNEL)?;
        assert!(array.page(3, &rcu::read_lock()).is_none());
        array.add_page(3)?;
        array.add_page(1 << 40)?;
        assert!(array.add_page(3) == Err(EBUSY));
        {
            let rcu = rcu::read_lock();
            let page = array.page(3, &rcu).ok_or(EINVAL)?;
            assert!(page.words().iter().all(|word| word.load(Relaxed) == 0));
            page.words()[WORDS_PER_PAGE - 1].store(7, Relaxed);
            assert!(!page.take_used());
            page.set_used();
            page.set_used();
            assert!(page.take_used());
            assert!(!page.take_used());
        }
        assert_eq!(array.next_page(0), Some(3));
        assert_eq!(array.next_page(4), Some(1 << 40));
        assert!(array.remove_page(3));
        assert!(!array.remove_page(3));
        assert!(array.page(3, &rcu::read_lock()).is_none());
        array.add_page(3)?;
        let word = array
            .page(3, &rcu::read_lock())
            .map(|page| page.words()[WORDS_PER_PAGE - 1].load(Relaxed));
        assert_eq!(word, Some(0));
        Ok(())
    }
}
