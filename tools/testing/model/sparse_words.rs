// SPDX-License-Identifier: GPL-2.0

//! `dm::SparseWords`, of which only the first word of page 0 can exist.

use crate::{
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic,
            AtomicFlag, //
        },
        rcu, //
    },
};
use loom::sync::atomic::{
    AtomicUsize,
    Ordering, //
};

/// As in the module, though only the first one is there.
pub(crate) const WORDS_PER_PAGE: usize = 504;

/// How often a page can be added.
const PAGES: usize = 2;

/// Stands for no page.
const NONE: usize = PAGES;

/// A page.
pub(crate) struct Words {
    used: AtomicFlag,
    words: [Atomic<u64>; 1],
}

impl Words {
    pub(crate) fn words(&self) -> &[Atomic<u64>] {
        &self.words
    }

    pub(crate) fn set_used(&self) {
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
    }

    pub(crate) fn take_used(&self) -> bool {
        self.used.xchg(false, Relaxed)
    }
}

/// An array of words.
///
/// A page that was removed stays in memory: that nobody reads it any more when it is freed is for RCU to see to.
pub(crate) struct SparseWords {
    /// The page that there is, or [`NONE`].
    page: AtomicUsize,
    added: AtomicUsize,
    pages: [Words; PAGES],
}

impl SparseWords {
    pub(crate) fn new() -> impl PinInit<Self> {
        Self {
            page: AtomicUsize::new(NONE),
            added: AtomicUsize::new(0),
            pages: std::array::from_fn(|_| Words {
                used: AtomicFlag::new(false),
                words: [Atomic::new(0)],
            }),
        }
    }

    pub(crate) fn page(&self, page: usize, _: &rcu::Guard) -> Option<&Words> {
        assert_eq!(page, 0);
        self.pages.get(self.page.load(Ordering::Acquire))
    }

    pub(crate) fn add_page(&self, page: usize) -> Result {
        assert_eq!(page, 0);
        let added = self.added.fetch_add(1, Ordering::Relaxed);
        if added >= PAGES {
            return Err(ENOMEM);
        }
        self.page
            .compare_exchange(NONE, added, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .or(Err(EBUSY))
    }

    pub(crate) fn remove_page(&self, page: usize) -> bool {
        page == 0 && self.page.swap(NONE, Ordering::AcqRel) != NONE
    }

    pub(crate) fn next_page(&self, page: usize) -> Option<usize> {
        if std::thread::panicking() {
            // The test has ended, and loom with it; this comes from a drop.
            return None;
        }
        (page == 0 && self.page.load(Ordering::Acquire) != NONE).then_some(0)
    }
}
