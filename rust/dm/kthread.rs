// SPDX-License-Identifier: GPL-2.0

//! Threads of the kernel's.

use crate::bindings;
use core::ptr;
use kernel::{
    cpu::{
        nr_cpu_ids,
        CpuId, //
    },
    error::from_err_ptr,
    prelude::*,
    str::CStr,
    sync::atomic::{
        Atomic,
        Full, //
    },
    types::Opaque, //
};

/// What a thread does.
pub trait Job: Send {
    /// The processor that it is bound to, if any.
    fn cpu(&self) -> Option<CpuId>;

    /// Does it, on a thread that may sleep.
    fn run(&mut self);
}

/// The processors that are online now.
pub fn online_cpus() -> impl Iterator<Item = CpuId> {
    (0..nr_cpu_ids()).filter_map(|i| {
        let cpu = CpuId::from_u32(i)?;
        // SAFETY: The mask is a global one, and the number within it.
        unsafe { bindings::cpumask_test_cpu(i as c_int, &raw mut bindings::__cpu_online_mask) }
            .then_some(cpu)
    })
}

/// Does each job on a thread of its own and waits for all of them.
///
/// None starts before all threads are there. If the caller gets a signal meanwhile, `interrupted` is called once, and
/// may ask the jobs to end early; they are waited for all the same, and the result is EINTR.
///
/// ENOMEM if the threads cannot be made: no job was begun then.
pub fn run_all<J: Job>(name: &CStr, jobs: &mut [J], interrupted: impl FnOnce()) -> Result {
    let Ok(count) = i64::try_from(jobs.len()) else {
        return Err(EINVAL);
    };
    if count == 0 {
        return Ok(());
    }
    KBox::pin_init(
        pin_init!(Running {
            left: Atomic::new(count),
            done <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid for writes and pinned.
                unsafe { bindings::init_completion(slot) }
            }),
        }),
        GFP_KERNEL,
    )?
    .as_ref()
    .run(name, jobs, interrupted)
}

/// Jobs that are being done.
#[pin_data]
struct Running {
    /// How many have not been finished.
    left: Atomic<i64>,
    /// Told when that becomes none.
    #[pin]
    done: Opaque<bindings::completion>,
}

/// What a thread gets to know.
struct Start<J> {
    job: *mut J,
    running: *const Running,
}

/// # Safety
///
/// For a new thread only. `start` must be a `Start<J>`, and together with what it refers to stay until the thread has
/// exited. The job must be nobody else's.
unsafe extern "C" fn main<J: Job>(start: *mut c_void) -> c_int {
    // SAFETY: By the function's requirements.
    unsafe {
        let start = &*start.cast::<Start<J>>();
        (*start.job).run();
        if (*start.running).left.fetch_sub(1, Full) == 1 {
            bindings::complete((*start.running).done.get());
        }
    }
    0
}

/// Threads that were made, and at last are waited for until they have exited.
///
/// # Invariants
///
/// We have a reference to each of them.
struct Threads(KVec<*mut bindings::task_struct>);

impl Drop for Threads {
    fn drop(&mut self) {
        for &thread in &self.0 {
            // SAFETY: It is valid and the reference ours by the type invariants. This waits until the thread has
            // exited, which it does by itself once its job is done; if it was never started, it does without.
            unsafe { bindings::kthread_stop_put(thread) };
        }
    }
}

impl Running {
    fn run<J: Job>(
        self: Pin<&Self>,
        name: &CStr,
        jobs: &mut [J],
        interrupted: impl FnOnce(),
    ) -> Result {
        let mut starts = KVec::with_capacity(jobs.len(), GFP_KERNEL)?;
        for job in jobs.iter_mut() {
            let start = Start {
                job: ptr::from_mut(job),
                running: ptr::from_ref(self.get_ref()),
            };
            starts.push(start, GFP_KERNEL)?;
        }
        // Dropped before all that the threads use.
        let mut threads = Threads(KVec::with_capacity(jobs.len(), GFP_KERNEL)?);
        for (i, start) in starts.iter().enumerate() {
            // SAFETY: The format takes a string and a number. What the thread gets stays, and the job is borrowed
            // by us, until `threads` is dropped and so the thread has exited.
            let thread = from_err_ptr(unsafe {
                bindings::kthread_create_on_node(
                    Some(main::<J>),
                    ptr::from_ref(start).cast_mut().cast(),
                    bindings::NUMA_NO_NODE,
                    c"%s/%u".as_char_ptr(),
                    name.as_char_ptr(),
                    i as c_uint,
                )
            })?;
            // SAFETY: The thread is new, so it waits to be started, and is valid.
            unsafe {
                bindings::get_task_struct(thread);
                // INVARIANT: The reference was just taken.
                if let Err(e) = threads.0.push(thread, GFP_KERNEL) {
                    bindings::kthread_stop_put(thread);
                    return Err(e.into());
                }
                // SAFETY: The job is ours until the thread is started.
                if let Some(cpu) = (*start.job).cpu() {
                    bindings::kthread_bind(thread, cpu.as_u32());
                }
            }
        }
        for &thread in &threads.0 {
            // SAFETY: We have a reference.
            unsafe { bindings::wake_up_process(thread) };
        }
        // SAFETY: The completion is initialised, and the last thread completes it.
        let waited = unsafe { bindings::wait_for_completion_interruptible(self.done.get()) };
        if waited != 0 {
            interrupted();
        }
        drop(threads);
        if waited != 0 {
            return Err(EINTR);
        }
        Ok(())
    }
}
