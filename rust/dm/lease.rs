// SPDX-License-Identifier: GPL-2.0

//! What the core lends for a time.

use core::{
    mem,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    sync::{
        new_condvar,
        new_mutex,
        CondVar,
        Mutex, //
    },
};

/// A pointer to something of the core's, which can be used until it is revoked.
///
/// It also counts the suspends that were begun with it, so that none outlasts it.
#[pin_data]
pub(crate) struct Lease<T> {
    #[pin]
    state: Mutex<State<T>>,
    /// Told when the last call under way ends.
    #[pin]
    unused: CondVar,
}

/// # Invariants
///
/// `ptr` is valid as long as it is there, or `calls` is not zero.
struct State<T> {
    ptr: Option<NonNull<T>>,
    /// Uses that are under way.
    calls: usize,
    /// Suspends that were not ended yet. Only changed by calls, and by [`Lease::revoke`] when there is none.
    suspends: usize,
}

// SAFETY: The pointer is only handed on to functions that have to say what they may do with it.
unsafe impl<T> Send for State<T> {}

impl<T> Lease<T> {
    /// # Safety
    ///
    /// `ptr` must be valid, on any thread, until [`Lease::revoke`] returns.
    pub(crate) unsafe fn new(ptr: NonNull<T>) -> impl PinInit<Self> {
        pin_init!(Self {
            // INVARIANT: By the function's requirements, as `revoke` waits.
            state <- new_mutex!(State { ptr: Some(ptr), calls: 0, suspends: 0 }, "dm_target"),
            unused <- new_condvar!("dm_target"),
        })
    }

    /// Calls `f` with the pointer, which stays valid until it returns; no lock is held, so calls nest.
    ///
    /// `None` if it was revoked.
    pub(crate) fn with<R>(&self, f: impl FnOnce(*mut T) -> R) -> Option<R> {
        let ptr = {
            let mut state = self.state.lock();
            let ptr = state.ptr?;
            state.calls += 1;
            ptr
        };
        let r = f(ptr.as_ptr());
        let mut state = self.state.lock();
        state.calls -= 1;
        if state.calls == 0 {
            self.unused.notify_all();
        }
        Some(r)
    }

    /// As [`with`](Self::with), for an `f` that begins a suspend.
    pub(crate) fn suspend(&self, f: impl FnOnce(*mut T)) {
        self.with(|ptr| {
            f(ptr);
            self.state.lock().suspends += 1;
        });
    }

    /// As [`with`](Self::with), for an `f` that ends a suspend. It is not called if there is none.
    pub(crate) fn resume(&self, f: impl FnOnce(*mut T)) {
        // The count goes down within the call: one that came too late to end the suspend leaves it to `revoke`.
        self.with(|ptr| {
            let is_suspended = {
                let mut state = self.state.lock();
                let left = state.suspends.checked_sub(1);
                state.suspends = left.unwrap_or(0);
                left.is_some()
            };
            if is_suspended {
                f(ptr);
            }
        });
    }

    /// Ends all uses: waits for the calls under way, and then calls `f` for each suspend that was not ended, as
    /// nobody else can do that any longer.
    pub(crate) fn revoke(&self, mut f: impl FnMut(*mut T)) {
        let (ptr, suspends) = {
            let mut state = self.state.lock();
            let Some(ptr) = state.ptr.take() else {
                return;
            };
            // One of them may be about to suspend.
            while state.calls != 0 {
                self.unused.wait(&mut state);
            }
            (ptr, mem::take(&mut state.suspends))
        };
        for _ in 0..suspends {
            f(ptr.as_ptr());
        }
    }
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_lease)]
mod tests {
    use super::*;
    use crate::workqueue::OwnedQueue;
    use kernel::{
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc,
            Completion, //
        },
        time::{
            delay::fsleep,
            Delta, //
        },
    };

    /// What stands for a device: how often it is suspended.
    type Depth = Atomic<i32>;

    #[pin_data]
    struct Shared {
        depth: Depth,
        #[pin]
        lease: Lease<Depth>,
        #[pin]
        begun: Completion,
    }

    fn shared() -> Result<Arc<Shared>> {
        Arc::pin_init(
            pin_init!(&this in Shared {
                depth: Atomic::new(0),
                // SAFETY: The field is there as long as the tests have the struct, at whose end they revoke.
                lease <- unsafe { Lease::new(NonNull::new_unchecked(&raw mut (*this.as_ptr()).depth)) },
                begun <- Completion::new(),
            }),
            GFP_KERNEL,
        )
    }

    fn add(depth: *mut Depth, n: i32) {
        // SAFETY: The lease gives a valid pointer.
        unsafe { &*depth }.fetch_add(n, Relaxed);
    }

    #[test]
    fn suspends_are_ended() -> Result {
        let shared = shared()?;
        let lease = &shared.lease;
        lease.resume(|depth| add(depth, -1));
        assert_eq!(shared.depth.load(Relaxed), 0);
        for _ in 0..3 {
            lease.suspend(|depth| add(depth, 1));
        }
        lease.resume(|depth| add(depth, -1));
        assert_eq!(shared.depth.load(Relaxed), 2);
        lease.revoke(|depth| add(depth, -1));
        assert_eq!(shared.depth.load(Relaxed), 0);
        // From here on, nothing happens.
        lease.suspend(|depth| add(depth, 1));
        lease.resume(|depth| add(depth, -1));
        lease.revoke(|depth| add(depth, -1));
        assert!(lease.with(|_| ()).is_none());
        assert_eq!(shared.depth.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn a_suspend_under_way_is_ended() -> Result {
        let queue = OwnedQueue::unbound(c"dm-test", 0)?;
        let shared = shared()?;
        let other = shared.clone();
        queue.spawn(GFP_KERNEL, move || {
            other.lease.suspend(|depth| {
                other.begun.complete_all();
                // It takes until somebody revokes, and nothing but the end of this call is left to wait for.
                while other.lease.with(|_| ()).is_some() {
                    fsleep(Delta::from_millis(1));
                }
                add(depth, 1);
            });
        })?;
        shared.begun.wait_for_completion();
        shared.lease.revoke(|depth| add(depth, -1));
        assert_eq!(shared.depth.load(Relaxed), 0);
        queue.flush();
        Ok(())
    }
}
