// SPDX-License-Identifier: GPL-2.0

//! What keeps the module's code in use beyond its targets.

use crate::{
    bindings,
    StaticMutex, //
};
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            AtomicFlag,
            Full,
            Relaxed,
            Release, //
        },
        rcu, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    workqueue::Queue, //
};

/// How many [`Live`] there are. The crate is linked into each module that uses it, so they are that module's own.
static COUNT: Atomic<i64> = Atomic::new(0);
/// Whether code of the module may have been in use since the last [`wait`].
static USED: AtomicFlag = AtomicFlag::new(false);
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
        note_use();
        Self(())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Release);
    }
}

/// Notes that somebody may execute code of the module from now on, who is not waited for otherwise.
pub(crate) fn note_use() {
    USED.store(true, Relaxed);
}

/// How many [`Live`] there are.
#[cfg(dm_thin_kunit)]
pub(crate) fn count() -> i64 {
    COUNT.load(Relaxed)
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
        fsleep(Delta::from_millis(1));
    }
    if let Some(wq) = QUEUE.lock().take() {
        // SAFETY: It was ours and is not used again. This waits for what it runs.
        unsafe { bindings::destroy_workqueue(wq.0.as_ptr()) };
    }
    if USED.xchg(false, Full) {
        wait_for_others();
    }
}

/// Waits until all that is executed now without sleeping has been left: until every interrupt has ended, and every
/// thread that was preempted has gone on to where it sleeps.
///
/// What counts down in the completion of a bio, or gives the bio away, is such code, and still has to return.
fn wait_for_others() {
    // SAFETY: Only called where it may sleep.
    unsafe { bindings::dm_rs_helper_synchronize_rcu_tasks() };
    rcu::synchronize_rcu();
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_live)]
mod tests {
    use super::*;
    use crate::workqueue::OwnedQueue;
    use kernel::{
        sync::{
            Arc,
            Completion, //
        },
        time::{
            Instant,
            Monotonic, //
        },
    };

    #[pin_data]
    struct Shared {
        #[pin]
        begun: Completion,
        is_done: AtomicFlag,
    }

    #[test]
    fn preempted_threads_are_waited_for() -> Result {
        let queue = OwnedQueue::unbound(c"dm-test", 0)?;
        let shared = Arc::pin_init(
            pin_init!(Shared {
                begun <- Completion::new(),
                is_done: AtomicFlag::new(false),
            }),
            GFP_KERNEL,
        )?;
        let other = shared.clone();
        queue.spawn(GFP_KERNEL, move || {
            // It is preempted when whoever waits here goes on, and does not sleep by itself.
            other.begun.complete_all();
            let begin = Instant::<Monotonic>::now();
            while begin.elapsed() < Delta::from_millis(300) {
                core::hint::spin_loop();
            }
            other.is_done.store(true, Release);
        })?;
        shared.begun.wait_for_completion();
        wait_for_others();
        assert!(shared.is_done.load(Acquire));
        queue.flush();
        Ok(())
    }
}
