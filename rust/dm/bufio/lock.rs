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
/// The word is a count of readers, or one of the flags.
pub(super) struct Lock(Atomic<u32>);

/// Held for writing.
const WRITER: u32 = 1 << 31;
/// Being made ready; nobody keeps it for long.
const PREPARING: u32 = 1 << 30;
/// Changed since it was made ready. There is no reader.
const STALE: u32 = 1 << 29;
/// So many readers cannot be.
const MAX_READERS: u32 = 1 << 28;

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

    /// Becomes a reader; `prepare` makes the block ready if it is stale. Whether it worked.
    pub(super) fn try_read(&self, prepare: impl FnOnce()) -> bool {
        let mut word = self.0.load(Relaxed);
        loop {
            if word & PREPARING != 0 {
                cpu_relax();
                word = self.0.load(Relaxed);
            } else if word & WRITER != 0 || word & !STALE >= MAX_READERS {
                return false;
            } else if word == STALE {
                let _on = NoPreempt::enter();
                match self.0.cmpxchg(word, PREPARING, Acquire) {
                    Ok(_) => {
                        prepare();
                        self.0.store(1, Release);
                        return true;
                    }
                    Err(now) => word = now,
                }
            } else {
                match self.0.cmpxchg(word, word + 1, Acquire) {
                    Ok(_) => return true,
                    Err(now) => word = now,
                }
            }
        }
    }

    pub(super) fn unlock_read(&self) {
        self.0.fetch_sub(1, Release);
    }

    /// Becomes the writer. Whether it worked.
    pub(super) fn try_write(&self) -> bool {
        let mut word = self.0.load(Relaxed);
        loop {
            if word & PREPARING != 0 {
                cpu_relax();
                word = self.0.load(Relaxed);
            } else if word == 0 || word == STALE {
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

    /// Makes the block ready if it is stale; leaves a writer alone.
    pub(super) fn prepare(&self, prepare: impl FnOnce()) {
        let mut word = self.0.load(Relaxed);
        loop {
            if word & PREPARING != 0 {
                cpu_relax();
                word = self.0.load(Acquire);
            } else if word == STALE {
                let _on = NoPreempt::enter();
                match self.0.cmpxchg(word, PREPARING, Acquire) {
                    Ok(_) => {
                        prepare();
                        self.0.store(0, Release);
                        return;
                    }
                    Err(now) => word = now,
                }
            } else {
                return;
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
        assert!(lock.try_read(never));
        assert!(lock.try_read(never));
        assert!(!lock.try_write());
        lock.prepare(never);
        lock.unlock_read();
        assert!(!lock.try_write());
        lock.unlock_read();
        assert!(lock.try_write());
        assert!(!lock.try_write());
        assert!(!lock.try_read(never));
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
        assert!(lock.try_read(prepare));
        assert_eq!(prepared.get(), 1);
        assert!(lock.try_read(prepare));
        lock.prepare(prepare);
        assert_eq!(prepared.get(), 1);
        lock.unlock_read();
        lock.unlock_read();
        assert!(lock.try_write());
        lock.unlock_write();
        lock.prepare(prepare);
        lock.prepare(prepare);
        assert_eq!(prepared.get(), 2);
        assert!(lock.try_write());
        lock.unlock_write();
        assert!(lock.try_write());
        lock.unlock_write();
        lock.prepare(prepare);
        assert_eq!(prepared.get(), 3);
    }
}
