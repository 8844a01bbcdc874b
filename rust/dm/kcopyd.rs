// SPDX-License-Identifier: GPL-2.0

//! Copying and zeroing of regions of devices, in the background.
//!
//! C header: [`include/linux/dm-kcopyd.h`](srctree/include/linux/dm-kcopyd.h)

use crate::{
    bindings,
    live::{
        self,
        Live, //
    },
    params::UintParam,
    Dev,
    Sector, //
};
use core::{
    cell::UnsafeCell,
    mem::{
        ManuallyDrop,
        MaybeUninit, //
    },
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull,
};
use kernel::{
    error::from_err_ptr,
    impl_has_work,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    task::Task,
    workqueue::{
        new_work,
        Work,
        WorkItem, //
    },
};

/// How much of the time copies may take, shared by the clients that are given it.
///
/// It is a module parameter; see [`uint_param!`](crate::uint_param).
#[repr(transparent)]
pub struct Throttle(UnsafeCell<bindings::dm_kcopyd_throttle>);

// SAFETY: The kernel locks what is not a single word; the percentage is one.
unsafe impl Sync for Throttle {}

impl Throttle {
    /// A percentage of the time; 100 does not limit.
    pub const fn new(percent: u32) -> Self {
        Self(UnsafeCell::new(bindings::dm_kcopyd_throttle {
            throttle: percent,
            num_io_jobs: 0,
            io_period: 0,
            total_period: 0,
            last_jiffies: 0,
        }))
    }

    /// The percentage, as a parameter.
    pub const fn param(&'static self) -> &'static UintParam {
        // SAFETY: The field is an `unsigned int` of static lifetime, which `UintParam` is a
        // transparent wrapper of.
        unsafe { &*(&raw const (*self.0.get()).throttle).cast() }
    }
}

/// The outcome of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Reading failed.
    pub read_failed: bool,
    /// Writing failed.
    pub write_failed: bool,
}

impl Outcome {
    /// Nothing failed.
    pub fn is_ok(self) -> bool {
        !self.read_failed && !self.write_failed
    }
}

/// Behaviour of a job.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Flags(c_uint);

impl Flags {
    /// The usual.
    pub const NONE: Self = Self(0);
    /// Write what could be read even if some could not.
    pub const IGNORE_ERROR: Self = Self(1 << bindings::DM_KCOPYD_IGNORE_ERROR);
    /// Write in order.
    pub const WRITE_SEQ: Self = Self(1 << bindings::DM_KCOPYD_WRITE_SEQ);
}

/// What is told when a job is done.
pub trait JobDone: Sized + Send + 'static {
    /// The job is done; it runs in kcopyd's thread, or in that of a caller who gave nothing to do.
    ///
    /// It may sleep, but holds up the client's other jobs.
    fn done(job: KBox<Job<Self>>, outcome: Outcome);
}

/// A job that can be given to a [`Client`], with a value of the user's that it dereferences to.
pub struct Job<T> {
    /// Keep the devices open.
    from: Option<Dev>,
    to: Option<Dev>,
    client: *const Inner,
    value: T,
}

// SAFETY: The pointer is only used by what kcopyd calls, the rest is `Send`.
unsafe impl<T: Send> Send for Job<T> {}
// SAFETY: As above.
unsafe impl<T: Sync> Sync for Job<T> {}

impl<T> Job<T> {
    /// A job, to be put into a box.
    pub fn new(value: T) -> Self {
        Self {
            from: None,
            to: None,
            client: core::ptr::null(),
            value,
        }
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.value
    }

    /// The value, and room for another job.
    pub fn take(job: KBox<Self>) -> (T, KBox<MaybeUninit<Self>>) {
        let job = KBox::into_raw(job);
        // SAFETY: It is valid, as it was in a box, and not used as a job again.
        let value = unsafe { job.read() };
        // SAFETY: The memory is still ours, and a box's of the same layout.
        let room = unsafe { KBox::from_raw(job.cast()) };
        (value.into_inner(), room)
    }
}

impl<T> Deref for Job<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Job<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// A part of a device.
#[derive(Clone, Copy)]
pub struct Region<'a> {
    /// The device.
    pub dev: &'a Dev,
    /// The first sector.
    pub sector: Sector,
}

/// A client of kcopyd.
///
/// Dropping it waits for all its jobs. If a job's own [`JobDone::done`] drops it, it is destroyed a little later
/// instead, and unloading the module waits for that.
pub struct Client(ManuallyDrop<Pin<KBox<Inner>>>);

#[pin_data(PinnedDrop)]
struct Inner {
    kc: Kc,
    /// The thread that is in [`JobDone::done`], as the address of its task; zero if none is.
    ///
    /// A client has one worker, and the value only matters to the thread that stored it.
    in_done: Atomic<usize>,
    /// To have the client destroyed by another thread.
    #[pin]
    work: Work<Self>,
    live: Live,
}

/// # Invariants
///
/// A valid client.
struct Kc(NonNull<bindings::dm_kcopyd_client>);

// SAFETY: kcopyd's clients can be used on any thread.
unsafe impl Send for Kc {}
// SAFETY: As above, by several at once.
unsafe impl Sync for Kc {}

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
        // SAFETY: Valid by the invariants of `Kc`, and not used again. This waits for all jobs, so what `job_done`
        // uses of us stays until it has returned.
        unsafe { bindings::dm_kcopyd_client_destroy(self.kc.0.as_ptr()) };
    }
}

fn current() -> usize {
    Task::current_raw().addr()
}

impl Client {
    /// A client with a throttle.
    pub fn new(throttle: &'static Throttle) -> Result<Self> {
        let live = Live::new();
        // The queue that may have to destroy the client must be there by then.
        live::queue(&live)?;
        // SAFETY: The throttle lives as long as the module, which `Live` keeps.
        let kc = from_err_ptr(unsafe { bindings::dm_kcopyd_client_create(throttle.0.get()) })?;
        let kc = NonNull::new(kc).ok_or(ENOMEM)?;
        let inner = KBox::pin_init(
            pin_init!(Inner {
                // INVARIANT: Just created.
                kc: Kc(kc),
                in_done: Atomic::new(0),
                work <- new_work!("dm::kcopyd::Client"),
                live,
            }),
            GFP_KERNEL,
        );
        match inner {
            Ok(inner) => Ok(Self(ManuallyDrop::new(inner))),
            Err(e) => {
                // SAFETY: Just created and used by nobody.
                unsafe { bindings::dm_kcopyd_client_destroy(kc.as_ptr()) };
                Err(e)
            }
        }
    }

    /// Copies `count` sectors.
    ///
    /// May wait for memory, without starting I/O.
    pub fn copy<T: JobDone>(
        &self,
        job: KBox<Job<T>>,
        from: Region<'_>,
        to: Region<'_>,
        count: Sector,
        flags: Flags,
    ) {
        self.start::<T>(job, Some(from), to, count, flags);
    }

    /// Zeroes `count` sectors.
    ///
    /// May wait for memory, without starting I/O.
    pub fn zero<T: JobDone>(&self, job: KBox<Job<T>>, to: Region<'_>, count: Sector, flags: Flags) {
        self.start::<T>(job, None, to, count, flags);
    }

    fn start<T: JobDone>(
        &self,
        mut job: KBox<Job<T>>,
        from: Option<Region<'_>>,
        to: Region<'_>,
        count: Sector,
        flags: Flags,
    ) {
        if count == 0 {
            T::done(
                job,
                Outcome {
                    read_failed: false,
                    write_failed: false,
                },
            );
            return;
        }

        job.from = from.map(|r| r.dev.clone());
        job.to = Some(to.dev.clone());
        job.client = &raw const **self.0;
        let region = |r: Region<'_>| bindings::dm_io_region {
            bdev: r.dev.bdev(),
            sector: r.sector,
            count,
        };
        let mut from = from.map(region);
        let mut to = region(to);
        // SAFETY: The client is valid. The regions are copied, with as many sectors to write as to
        // read; their devices stay open, as the job has them. The context is the job, which is
        // valid until it is given back to us in `job_done`, once.
        unsafe {
            bindings::dm_kcopyd_copy(
                self.0.kc.0.as_ptr(),
                from.as_mut().map_or(core::ptr::null_mut(), |r| r),
                1,
                &mut to,
                flags.0,
                Some(job_done::<T>),
                KBox::into_raw(job).cast(),
            );
        }
    }
}

/// # Safety
///
/// For kcopyd only, with a job that [`Client::start`] gave it.
unsafe extern "C" fn job_done<T: JobDone>(
    read_err: c_int,
    write_err: c_ulong,
    context: *mut c_void,
) {
    // SAFETY: The job is given back to us.
    let mut job = unsafe { KBox::<Job<T>>::from_raw(context.cast()) };
    // SAFETY: The client is destroyed only after its jobs are done, that is after we returned.
    let client = unsafe { &*job.client };
    job.from = None;
    job.to = None;
    client.in_done.store(current(), Relaxed);
    T::done(
        job,
        Outcome {
            read_failed: read_err != 0,
            write_failed: write_err != 0,
        },
    );
    client.in_done.store(0, Relaxed);
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: It is not used again.
        let inner = unsafe { ManuallyDrop::take(&mut self.0) };
        if inner.in_done.load(Relaxed) == current() {
            // It would wait for the very job that it is dropped by.
            let live = Live::new();
            match live::queue(&live) {
                Ok(queue) => queue.enqueue(inner),
                // It is there since the client is, so this is never reached.
                Err(_) => core::mem::forget(inner),
            }
        }
    }
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_kcopyd)]
mod tests {
    use super::*;
    use kernel::{
        sync::{
            Arc,
            Completion, //
        },
        time::{
            delay::fsleep,
            Delta,
            Instant,
            Monotonic, //
        },
    };

    static THROTTLE: Throttle = Throttle::new(100);

    /// Drops a client when it is done.
    struct DropClient {
        client: Option<Client>,
        dropped: Arc<Completion>,
    }

    impl JobDone for DropClient {
        fn done(mut job: KBox<Job<Self>>, _outcome: Outcome) {
            drop(job.value.client.take());
            job.dropped.complete_all();
        }
    }

    #[test]
    fn a_job_may_drop_its_client() -> Result {
        let before = live::count();
        let dropped = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
        let client = Client::new(&THROTTLE)?;
        let kc = client.0.kc.0.as_ptr();
        let inner: *const Inner = &raw const **client.0;
        let mut job = KBox::new(
            Job::new(DropClient {
                client: Some(client),
                dropped: dropped.clone(),
            }),
            GFP_KERNEL,
        )?;
        job.client = inner;
        // SAFETY: The client is valid until its jobs are done. The job is given back to us in `job_done`, once.
        unsafe {
            let callback = bindings::dm_kcopyd_prepare_callback(
                kc,
                Some(job_done::<DropClient>),
                KBox::into_raw(job).cast(),
            );
            bindings::dm_kcopyd_do_callback(callback, 0, 0);
        }
        dropped.wait_for_completion();
        // The client must be destroyed in the end. It takes no time that matters, so this one is generous.
        let begin = Instant::<Monotonic>::now();
        while live::count() != before && begin.elapsed() < Delta::from_secs(20) {
            fsleep(Delta::from_millis(1));
        }
        assert_eq!(live::count(), before);
        Ok(())
    }
}
