// SPDX-License-Identifier: GPL-2.0

//! Work queues of one's own.
//!
//! Works are those of [`kernel::workqueue`]: a [`Work`] or [`DelayedWork`] in a struct that is in
//! an [`Arc`], with `impl_has_work!` or `impl_has_delayed_work!` and [`WorkItem`]. A pending work
//! holds a reference to its struct, so nothing it needs can go away; cancelling it drops that
//! reference.
//!
//! A struct may own the queue that its works run on. If the last reference to it is dropped by
//! such a work, the queue would have to wait for itself: then its destruction is left to another
//! queue, and unloading the module waits for that. Still, [`Drop`] of the struct runs in the work
//! then; where that matters, cancel and flush first, with references left.
//!
//! [`Work`]: kernel::workqueue::Work
//! [`DelayedWork`]: kernel::workqueue::DelayedWork

use crate::{
    bindings,
    live::{
        self,
        Live, //
    },
};
use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    alloc::Flags,
    container_of, impl_has_work,
    prelude::*,
    str::CStr,
    sync::Arc,
    time::Jiffies,
    types::Opaque,
    workqueue::{
        new_work,
        HasDelayedWork,
        HasWork,
        Queue,
        RawWorkItem,
        Work,
        WorkItem, //
    },
};

/// A work queue that makes progress without memory (`WQ_MEM_RECLAIM`).
///
/// Dropping it waits for the works on it.
pub struct OwnedQueue(ManuallyDrop<Pin<KBox<Inner>>>);

/// # Invariants
///
/// `wq` is a valid queue.
#[pin_data(PinnedDrop)]
struct Inner {
    wq: NonNull<bindings::workqueue_struct>,
    /// To have the queue destroyed by another.
    #[pin]
    work: Work<Self>,
    live: Live,
}

// SAFETY: Queues can be used and destroyed on any thread.
unsafe impl Send for Inner {}
// SAFETY: As above, and used by several at once.
unsafe impl Sync for Inner {}

impl_has_work! {
    impl HasWork<Self> for Inner { self.work }
}

impl WorkItem for Inner {
    type Pointer = Pin<KBox<Self>>;

    fn run(this: Self::Pointer) {
        drop(this);
    }
}

#[pinned_drop]
impl PinnedDrop for Inner {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Valid by the type invariants and not used again. No timer of a delayed work
        // refers to it, see `OnQueue`.
        unsafe { bindings::destroy_workqueue(self.wq.as_ptr()) };
    }
}

impl OwnedQueue {
    fn alloc(name: &CStr, flags: bindings::wq_flags, max_active: c_int) -> Result<Self> {
        let live = Live::new();
        // The queue that may have to destroy this one must be there by then.
        live::queue(&live)?;
        // SAFETY: The format takes a string.
        let wq = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                flags | bindings::wq_flags_WQ_MEM_RECLAIM,
                max_active,
                name.as_char_ptr(),
            )
        };
        let wq = NonNull::new(wq).ok_or(ENOMEM)?;
        let inner = KBox::pin_init(
            pin_init!(Inner {
                // INVARIANT: Just created.
                wq,
                work <- new_work!("dm::OwnedQueue"),
                live,
            }),
            GFP_KERNEL,
        );
        match inner {
            Ok(inner) => Ok(Self(ManuallyDrop::new(inner))),
            Err(e) => {
                // SAFETY: Just created and used by nobody.
                unsafe { bindings::destroy_workqueue(wq.as_ptr()) };
                Err(e)
            }
        }
    }

    /// A queue that runs one work at a time, in the order they come.
    pub fn ordered(name: &CStr) -> Result<Self> {
        Self::alloc(
            name,
            bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags___WQ_ORDERED,
            1,
        )
    }

    /// A queue that runs up to `max_active` works at a time on any processor; zero is the default.
    pub fn unbound(name: &CStr, max_active: u16) -> Result<Self> {
        Self::alloc(name, bindings::wq_flags_WQ_UNBOUND, c_int::from(max_active))
    }

    fn queue(&self) -> &Queue {
        // SAFETY: By the invariants of `Inner` it is valid as long as `self` is.
        unsafe { Queue::from_raw(self.0.wq.as_ptr()) }
    }

    /// Has a work run; gives it back if it is waiting to run already. For any context.
    ///
    /// A work that is just running is run once more.
    pub fn enqueue<W, const ID: u64>(&self, work: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        self.queue().enqueue(work)
    }

    /// Has a closure run.
    pub fn spawn<F: FnOnce() + Send + 'static>(&self, flags: Flags, f: F) -> Result {
        let mut f = Some(f);
        let once = move || {
            if let Some(f) = f.take() {
                f();
            }
        };
        self.spawn_boxed(flags, KBox::new(once, flags)?)
    }

    /// There is but one of this function. `try_spawn` is one for each type of closure, with a text of its own to
    /// name the class of a lock that they share, which lockdep does not like.
    #[inline(never)]
    #[expect(clippy::redundant_closure, reason = "a box is no closure")]
    fn spawn_boxed(&self, flags: Flags, mut f: KBox<dyn FnMut() + Send>) -> Result {
        Ok(self.queue().try_spawn(flags, move || f())?)
    }

    /// Has a closure run and waits for its result. Must not be called by a work of the queue.
    pub fn call<R: Send, F: FnOnce() -> R + Send>(&self, f: F) -> R {
        #[repr(C)]
        struct Call<F, R> {
            work: Opaque<bindings::work_struct>,
            f: Option<F>,
            result: Option<R>,
        }

        /// # Safety
        ///
        /// For the work in a `Call` of this type only, which must stay, and be used by nobody else,
        /// until this returns.
        unsafe extern "C" fn run<R, F: FnOnce() -> R>(work: *mut bindings::work_struct) {
            // The work comes first.
            let call: *mut Call<F, R> = work.cast();
            // SAFETY: By the function's requirements.
            unsafe { (*call).result = (*call).f.take().map(|f| f()) };
        }

        let mut call = Call {
            work: Opaque::uninit(),
            f: Some(f),
            result: None,
        };
        let call: *mut Call<F, R> = &mut call;
        let work = call.cast();
        // SAFETY: The work is on the stack, and as `call` is only used through this pointer it
        // stays there, untouched, until it has run: it was never queued, so it is now, and waited
        // for.
        unsafe {
            bindings::init_work_with_key(
                work,
                Some(run::<R, F>),
                true,
                c"dm::OwnedQueue::call".as_char_ptr(),
                kernel::static_lock_class!().as_ptr(),
            );
            bindings::queue_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                self.0.wq.as_ptr(),
                work,
            );
            bindings::flush_work(work);
            bindings::dm_rs_helper_destroy_work_on_stack(work);
            // It has run, so there is a result.
            (*call).result.take().unwrap_unchecked()
        }
    }

    /// Waits for all works that were enqueued so far. Must not be called by a work of the queue.
    pub fn flush(&self) {
        // SAFETY: Valid by the invariants of `Inner`.
        unsafe { bindings::__flush_workqueue(self.0.wq.as_ptr()) };
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: It is not used again.
        let inner = unsafe { ManuallyDrop::take(&mut self.0) };
        // SAFETY: It reads a flag of the current thread.
        if unsafe { bindings::dm_rs_helper_current_is_worker() } {
            // We may be run by this very queue.
            let live = Live::new();
            match live::queue(&live) {
                Ok(queue) => queue.enqueue(inner),
                // It is there since this queue is, so this is never reached.
                Err(_) => core::mem::forget(inner),
            }
        }
    }
}

/// What runs its delayed works on a queue that lives as long as itself.
///
/// A pending work keeps its struct, and so the queue: no timer can fire after the queue is gone.
pub trait OnQueue {
    /// The queue.
    fn queue(&self) -> &OwnedQueue;
}

/// Has a work run after `delay`; gives it back if it is waiting to run already.
pub fn enqueue_delayed<T, const ID: u64>(item: Arc<T>, delay: Jiffies) -> Result<(), Arc<T>>
where
    T: OnQueue + HasDelayedWork<T, ID> + WorkItem<ID, Pointer = Arc<T>> + Send + Sync + 'static,
{
    let wq = item.queue().0.wq;
    // SAFETY: The queue lives as long as what `item` refers to: `queue()` would give it for any
    // borrow of that. The work holds a reference to it until it runs or is cancelled, so the queue
    // is valid until then.
    unsafe { Queue::from_raw(wq.as_ptr()) }.enqueue_delayed(item, delay)
}

/// Has a work run after `delay`, whether it is waiting to run already or not.
pub fn mod_delayed<T, const ID: u64>(item: Arc<T>, delay: Jiffies)
where
    T: OnQueue + HasDelayedWork<T, ID> + WorkItem<ID, Pointer = Arc<T>> + Send + Sync + 'static,
{
    cancel_delayed(&item);
    // If somebody else enqueued it meanwhile, it runs as they want it.
    let _ = enqueue_delayed(item, delay);
}

fn work_of<T, const ID: u64>(item: &Arc<T>) -> *mut bindings::work_struct
where
    T: HasWork<T, ID>,
{
    // SAFETY: `item` is valid, and so the work in it.
    unsafe { Work::raw_get(T::raw_get_work(Arc::as_ptr(item).cast_mut())) }
}

fn delayed_of<T, const ID: u64>(item: &Arc<T>) -> *mut bindings::delayed_work
where
    T: HasDelayedWork<T, ID>,
{
    // SAFETY: By the requirements of `HasDelayedWork` the work is part of a delayed work.
    unsafe { container_of!(work_of::<T, ID>(item), bindings::delayed_work, work) }
}

/// Drops the reference that a work held, if `cancelled`.
///
/// # Safety
///
/// If `cancelled`, the work must have been pending and not be so any more.
unsafe fn cancelled<T>(item: &Arc<T>, cancelled: bool) -> bool {
    if cancelled {
        // SAFETY: When the work was enqueued, a reference was given to it, to be taken back when it
        // runs; by the function's requirements it does not.
        drop(unsafe { Arc::from_raw(Arc::as_ptr(item)) });
    }
    cancelled
}

/// Keeps a delayed work from running and waits if it is running; says whether it was waiting to
/// run.
///
/// Must not be called by the work itself. A work that enqueues itself does not after this began.
pub fn cancel_delayed_sync<T, const ID: u64>(item: &Arc<T>) -> bool
where
    T: HasDelayedWork<T, ID> + WorkItem<ID, Pointer = Arc<T>>,
{
    // SAFETY: The work is valid; the function says whether it was pending, which it is no more.
    unsafe {
        cancelled(
            item,
            bindings::cancel_delayed_work_sync(delayed_of::<T, ID>(item)),
        )
    }
}

/// Keeps a delayed work from running, unless it is running; says whether it was waiting to run.
pub fn cancel_delayed<T, const ID: u64>(item: &Arc<T>) -> bool
where
    T: HasDelayedWork<T, ID> + WorkItem<ID, Pointer = Arc<T>>,
{
    // SAFETY: The work is valid; the function says whether it was pending, which it is no more.
    unsafe {
        cancelled(
            item,
            bindings::cancel_delayed_work(delayed_of::<T, ID>(item)),
        )
    }
}

/// Waits until a work is neither running nor waiting to run; not for delays to pass.
///
/// Must not be called by the work itself.
pub fn flush<T, const ID: u64>(item: &Arc<T>)
where
    T: HasWork<T, ID> + WorkItem<ID, Pointer = Arc<T>>,
{
    // SAFETY: The work is valid.
    unsafe { bindings::flush_work(work_of::<T, ID>(item)) };
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_workqueue)]
mod tests {
    use super::*;
    use kernel::{
        impl_has_delayed_work,
        sync::atomic::{
            Atomic,
            Relaxed, //
        },
        time::{
            delay::fsleep,
            Delta, //
        },
        workqueue::{
            new_delayed_work,
            DelayedWork, //
        },
    };

    #[pin_data]
    struct Item {
        queue: OwnedQueue,
        runs: Arc<Atomic<u32>>,
        #[pin]
        work: Work<Self, 0>,
        #[pin]
        delayed: DelayedWork<Self, 1>,
    }

    impl_has_work! {
        impl HasWork<Self, 0> for Item { self.work }
    }
    impl_has_delayed_work! {
        impl HasDelayedWork<Self, 1> for Item { self.delayed }
    }

    impl WorkItem<0> for Item {
        type Pointer = Arc<Self>;

        fn run(this: Arc<Self>) {
            this.runs.fetch_add(1, Relaxed);
        }
    }

    impl WorkItem<1> for Item {
        type Pointer = Arc<Self>;

        fn run(this: Arc<Self>) {
            this.runs.fetch_add(100, Relaxed);
        }
    }

    impl OnQueue for Item {
        fn queue(&self) -> &OwnedQueue {
            &self.queue
        }
    }

    fn item() -> Result<(Arc<Item>, Arc<Atomic<u32>>)> {
        let runs = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let counted = runs.clone();
        let item = Arc::pin_init(
            try_pin_init!(Item {
                queue: OwnedQueue::ordered(c"dm-test")?,
                runs: counted,
                work <- new_work!("dm-test"),
                delayed <- new_delayed_work!("dm-test"),
            }? Error),
            GFP_KERNEL,
        )?;
        Ok((item, runs))
    }

    #[test]
    fn runs_and_waits() -> Result {
        let (item, runs) = item()?;
        for i in 1..=3 {
            assert!(item.queue.enqueue::<_, 0>(item.clone()).is_ok());
            item.queue.flush();
            assert_eq!(runs.load(Relaxed), i);
        }
        assert!(item.queue.enqueue::<_, 0>(item.clone()).is_ok());
        flush::<_, 0>(&item);
        assert_eq!(runs.load(Relaxed), 4);
        assert!(Arc::into_unique_or_drop(item).is_some());
        Ok(())
    }

    #[test]
    fn calls() -> Result {
        let (item, _) = item()?;
        let seen = KVec::from_elem(3, 2, GFP_KERNEL)?;
        let sum: i32 = item.queue.call(|| seen.iter().sum());
        assert_eq!(sum, 6);
        Ok(())
    }

    #[test]
    fn cancelling_drops_the_reference() -> Result {
        let (item, runs) = item()?;
        assert!(enqueue_delayed::<_, 1>(item.clone(), 100_000).is_ok());
        assert!(enqueue_delayed::<_, 1>(item.clone(), 1).is_err());
        mod_delayed::<_, 1>(item.clone(), 200_000);
        assert!(cancel_delayed::<_, 1>(&item));
        assert!(!cancel_delayed_sync::<_, 1>(&item));
        assert_eq!(runs.load(Relaxed), 0);
        assert!(Arc::into_unique_or_drop(item).is_some());
        Ok(())
    }

    #[test]
    fn delayed_work_runs() -> Result {
        let (item, runs) = item()?;
        assert!(enqueue_delayed::<_, 1>(item.clone(), 100_000).is_ok());
        mod_delayed::<_, 1>(item.clone(), 0);
        flush::<_, 1>(&item);
        assert_eq!(runs.load(Relaxed), 100);
        Ok(())
    }

    #[test]
    fn a_work_may_drop_its_queue() -> Result {
        let (item, runs) = item()?;
        for _ in 0..2 {
            let last = item.clone();
            item.queue.spawn(GFP_KERNEL, move || {
                last.runs.fetch_add(1, Relaxed);
                drop(last);
            })?;
        }
        assert!(enqueue_delayed::<_, 1>(item.clone(), 1).is_ok());
        drop(item);
        for _ in 0..1000 {
            if runs.load(Relaxed) == 102 {
                break;
            }
            fsleep(Delta::from_millis(1));
        }
        assert_eq!(runs.load(Relaxed), 102);
        Ok(())
    }
}
