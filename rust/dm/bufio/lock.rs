// SPDX-License-Identifier: GPL-2.0

//! The lock of a cached block; the states are told in the parent's documentation.

use crate::bindings;
use kernel::{
    processor::cpu_relax,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
};

/// The lock of a block.
///
/// The word is a count of readers, maybe with [`STALE`] and [`REWRITE`], or [`WRITER`], or [`PREPARING`].
pub(super) struct Lock(Atomic<u32>);

/// Held for writing.
const WRITER: u32 = 1 << 31;
/// Being made ready; nobody keeps it for long.
const PREPARING: u32 = 1 << 30;
/// Changed since it was made ready.
const STALE: u32 = 1 << 29;
/// Written while it was stale and had readers, so that it could not be made ready.
const REWRITE: u32 = 1 << 28;
/// The count of readers.
const READERS: u32 = REWRITE - 1;

/// Keeps the thread on its processor while it makes a block ready, so that others wait briefly.
struct NoPreempt;

impl NoPreempt {
    fn enter() -> Self {
        // SAFETY: Undone on drop.
        unsafe { bindings::dm_rs_helper_preempt_disable() };
        Self
    }
}

impl Drop for NoPreempt {
    fn drop(&mut self) {
        // SAFETY: Undoes `enter`.
        unsafe { bindings::dm_rs_helper_preempt_enable() };
    }
}

impl Lock {
    pub(super) const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Becomes a reader. Whether it worked.
    pub(super) fn try_read(&self) -> bool {
        let mut word = self.0.load(Relaxed);
        loop {
            if word & PREPARING != 0 {
                cpu_relax();
                word = self.0.load(Relaxed);
            } else if word & WRITER != 0 || word & READERS == READERS {
                return false;
            } else {
                match self.0.cmpxchg(word, word + 1, Acquire) {
                    Ok(_) => return true,
                    Err(now) => word = now,
                }
            }
        }
    }

    /// Leaves the readers. Whether the block must be written again.
    pub(super) fn unlock_read(&self) -> bool {
        let before = self.0.fetch_sub(1, Release);
        before & (READERS | REWRITE) == (1 | REWRITE) && self.take_rewrite()
    }

    /// Forgets that the block must be written again. If it has readers by now, it stays to be done by the last.
    #[cold]
    fn take_rewrite(&self) -> bool {
        self.0.cmpxchg(STALE | REWRITE, STALE, Relaxed).is_ok()
    }

    /// Becomes the writer. Whether it worked.
    pub(super) fn try_write(&self) -> bool {
        let mut word = self.0.load(Relaxed);
        loop {
            if word & PREPARING != 0 {
                cpu_relax();
                word = self.0.load(Relaxed);
            } else if word & !(STALE | REWRITE) == 0 {
                match self.0.cmpxchg(word, WRITER, Acquire) {
                    Ok(_) => return true,
                    Err(now) => word = now,
                }
            } else {
                return false;
            }
        }
    }

    /// Leaves the block stale.
    pub(super) fn unlock_write(&self) {
        self.0.store(STALE, Release);
    }

    /// The block is about to be written: makes it ready if it is stale and nobody holds it. If it has readers, the last
    /// one will see to it that it is written again; a writer does so anyway.
    pub(super) fn prepare(&self, prepare: impl FnOnce()) {
        let mut word = self.0.load(Relaxed);
        loop {
            let next = if word & PREPARING != 0 {
                cpu_relax();
                word = self.0.load(Acquire);
                continue;
            } else if word & WRITER != 0 || word & STALE == 0 {
                return;
            } else if word & READERS != 0 {
                word | REWRITE
            } else {
                PREPARING
            };
            let _on = NoPreempt::enter();
            match self.0.cmpxchg(word, next, Acquire) {
                Ok(_) if next == PREPARING => {
                    prepare();
                    self.0.store(0, Release);
                    return;
                }
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_bufio)]
mod tests {
    use super::*;
    use core::cell::Cell;

    #[test]
    fn many_readers_or_one_writer() {
        let never = || assert!(false);
        let lock = Lock::new();
        assert!(lock.try_read());
        assert!(lock.try_read());
        assert!(!lock.try_write());
        lock.prepare(never);
        assert!(!lock.unlock_read());
        assert!(!lock.try_write());
        assert!(!lock.unlock_read());
        assert!(lock.try_write());
        assert!(!lock.try_write());
        assert!(!lock.try_read());
        lock.prepare(never);
        lock.unlock_write();
    }

    #[test]
    fn stale_blocks_are_made_ready_once() {
        let prepared = Cell::new(0);
        let prepare = || prepared.set(prepared.get() + 1);
        let lock = Lock::new();
        assert!(lock.try_write());
        lock.unlock_write();
        assert!(lock.try_read());
        assert!(!lock.unlock_read());
        lock.prepare(prepare);
        lock.prepare(prepare);
        assert_eq!(prepared.get(), 1);
        assert!(lock.try_write());
        lock.unlock_write();
        assert!(lock.try_write());
        lock.unlock_write();
        lock.prepare(prepare);
        assert_eq!(prepared.get(), 2);
    }

    #[test]
    fn what_is_written_below_readers_is_written_again() {
        let prepared = Cell::new(0);
        let prepare = || prepared.set(prepared.get() + 1);
        let lock = Lock::new();
        assert!(lock.try_write());
        lock.unlock_write();
        assert!(lock.try_read());
        assert!(lock.try_read());
        lock.prepare(prepare);
        assert_eq!(prepared.get(), 0);
        assert!(!lock.unlock_read());
        assert!(lock.unlock_read());
        assert!(lock.try_read());
        assert!(!lock.unlock_read());
        lock.prepare(prepare);
        assert_eq!(prepared.get(), 1);

        // The writer marks it changed in any case.
        assert!(lock.try_write());
        lock.unlock_write();
        assert!(lock.try_read());
        lock.prepare(prepare);
        assert!(lock.unlock_read());
        assert!(lock.try_write());
        lock.unlock_write();
        lock.prepare(prepare);
        assert_eq!(prepared.get(), 2);
    }
}
