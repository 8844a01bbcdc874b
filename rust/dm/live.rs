// SPDX-License-Identifier: GPL-2.0

//! What keeps the module's code in use beyond its targets.

use crate::{
    bindings,
    StaticMutex, //
};
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Relaxed,
        Release, //
    },
    workqueue::Queue, //
};

/// How many [`Live`] there are.
static COUNT: Atomic<i64> = Atomic::new(0);
/// Whether there was any since the last [`wait`].
static USED: Atomic<i32> = Atomic::new(0);
/// A queue for what cannot be done where it comes up; made when it is first needed.
static QUEUE: StaticMutex<Option<Wq>> = StaticMutex::new(None, c"dm_module_queue");

struct Wq(NonNull<bindings::workqueue_struct>);

// SAFETY: Queues can be used and destroyed on any thread.
unsafe impl Send for Wq {}

/// Keeps the module from being unloaded; see the crate's documentation.
pub(crate) struct Live(());

impl Live {
    pub(crate) fn new() -> Self {
        COUNT.fetch_add(1, Relaxed);
        USED.store(1, Relaxed);
        Self(())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Release);
    }
}

/// The module's own queue.
pub(crate) fn queue(_live: &Live) -> Result<&Queue> {
    let mut queue = QUEUE.lock();
    let wq = match &*queue {
        Some(wq) => wq.0,
        None => {
            // SAFETY: The name is a C string without a format.
            let wq = unsafe {
                bindings::alloc_workqueue_noprof(
                    c"dm-module".as_char_ptr(),
                    bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags_WQ_MEM_RECLAIM,
                    0,
                )
            };
            let wq = NonNull::new(wq).ok_or(ENOMEM)?;
            *queue = Some(Wq(wq));
            wq
        }
    };
    // SAFETY: It is only destroyed by `wait` when there is no `Live` left, and we borrow from one.
    Ok(unsafe { Queue::from_raw(wq.as_ptr()) })
}

/// Waits until nothing is live and nobody executes code that was.
pub(crate) fn wait() {
    while COUNT.load(Acquire) != 0 {
        // SAFETY: We are in the module's exit, which may sleep.
        unsafe { bindings::msleep(1) };
    }
    if let Some(wq) = QUEUE.lock().take() {
        // SAFETY: It was ours and is not used again. This waits for what it runs.
        unsafe { bindings::destroy_workqueue(wq.0.as_ptr()) };
    }
    if USED.xchg(0, Full) != 0 {
        // SAFETY: As above. Who counted down in the completion of a bio returns from it without
        // sleeping, so has returned when every task has slept and every interrupt has ended.
        unsafe {
            bindings::dm_rs_helper_synchronize_rcu_tasks();
            bindings::synchronize_rcu();
        }
    }
}
