// SPDX-License-Identifier: GPL-2.0

//! Copying and zeroing of regions of devices, in the background.
//!
//! C header: [`include/linux/dm-kcopyd.h`](srctree/include/linux/dm-kcopyd.h)

use crate::{
    bindings,
    live::Live,
    params::UintParam,
    Dev,
    PoolBox,
    Sector, //
};
use core::{
    cell::UnsafeCell,
    mem::ManuallyDrop,
    ops::{
        Deref,
        DerefMut, //
    },
};
use kernel::{
    error::from_err_ptr,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
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
    /// How the job is kept: `KBox<Job<Self>>` or `PoolBox<Job<Self>>`.
    type Ptr: JobPtr<Self>;

    /// The job is done; it runs in kcopyd's thread, or in that of a caller who gave nothing to do.
    ///
    /// It may sleep, but holds up the client's other jobs.
    fn done(job: Self::Ptr, outcome: Outcome);
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
    /// A job, to be put into a [`JobPtr`].
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

/// A box of a [`Job`].
///
/// # Safety
///
/// `into_raw` must give a pointer to the job, which stays valid and nobody else's until `from_raw`.
pub unsafe trait JobPtr<T>: DerefMut<Target = Job<T>> + Sized {
    /// Gives up ownership.
    fn into_raw(self) -> *mut Job<T>;
    /// Takes it back.
    ///
    /// # Safety
    ///
    /// `ptr` must be of [`JobPtr::into_raw`], which must not be undone twice.
    unsafe fn from_raw(ptr: *mut Job<T>) -> Self;
}

// SAFETY: A box has these very functions.
unsafe impl<T> JobPtr<T> for KBox<Job<T>> {
    fn into_raw(self) -> *mut Job<T> {
        KBox::into_raw(self)
    }

    unsafe fn from_raw(ptr: *mut Job<T>) -> Self {
        // SAFETY: By the function's requirements.
        unsafe { KBox::from_raw(ptr) }
    }
}

// SAFETY: A pool's box has these very functions.
unsafe impl<T> JobPtr<T> for PoolBox<Job<T>> {
    fn into_raw(self) -> *mut Job<T> {
        PoolBox::into_raw(self)
    }

    unsafe fn from_raw(ptr: *mut Job<T>) -> Self {
        // SAFETY: By the function's requirements.
        unsafe { PoolBox::from_raw(ptr) }
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
/// Dropping it waits for all its jobs. A job's own [`JobDone::done`] must not drop it: it is
/// leaked then, and the module cannot be unloaded any more.
pub struct Client(ManuallyDrop<KBox<Inner>>);

/// # Invariants
///
/// `kc` is a valid client.
struct Inner {
    kc: *mut bindings::dm_kcopyd_client,
    /// The thread that is in [`JobDone::done`], as the address of its task; zero if none is.
    ///
    /// A client has one worker, and the value only matters to the thread that stored it.
    in_done: Atomic<usize>,
    _live: Live,
}

// SAFETY: kcopyd's clients can be used on any thread, by several at once.
unsafe impl Send for Inner {}
// SAFETY: As above.
unsafe impl Sync for Inner {}

fn current() -> usize {
    // SAFETY: It reads which task is running, which is always there.
    unsafe { bindings::get_current() }.addr()
}

impl Client {
    /// A client with a throttle.
    pub fn new(throttle: &'static Throttle) -> Result<Self> {
        let live = Live::new();
        let mut inner = KBox::new(
            Inner {
                kc: core::ptr::null_mut(),
                in_done: Atomic::new(0),
                _live: live,
            },
            GFP_KERNEL,
        )?;
        // SAFETY: The throttle lives as long as the module, which `Live` keeps.
        // INVARIANT: Just created; if that fails, only the box is dropped.
        inner.kc = from_err_ptr(unsafe { bindings::dm_kcopyd_client_create(throttle.0.get()) })?;
        Ok(Self(ManuallyDrop::new(inner)))
    }

    /// Copies `count` sectors.
    ///
    /// May wait for memory, without starting I/O.
    pub fn copy<T: JobDone>(
        &self,
        job: T::Ptr,
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
    pub fn zero<T: JobDone>(&self, job: T::Ptr, to: Region<'_>, count: Sector, flags: Flags) {
        self.start::<T>(job, None, to, count, flags);
    }

    fn start<T: JobDone>(
        &self,
        mut job: T::Ptr,
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
                self.0.kc,
                from.as_mut().map_or(core::ptr::null_mut(), |r| r),
                1,
                &mut to,
                flags.0,
                Some(job_done::<T>),
                job.into_raw().cast(),
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
    let mut job = unsafe { T::Ptr::from_raw(context.cast()) };
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
        if self.0.in_done.load(Relaxed) == current() {
            // It would wait for the very job that it is dropped by.
            crate::dm_err!("kcopyd", "client dropped by a job of its own, and leaked");
            return;
        }
        // SAFETY: Valid by the invariants of `Inner`, and not used again.
        unsafe {
            bindings::dm_kcopyd_client_destroy(self.0.kc);
            ManuallyDrop::drop(&mut self.0);
        }
    }
}
