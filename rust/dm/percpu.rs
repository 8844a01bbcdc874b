// SPDX-License-Identifier: GPL-2.0

//! Values of which each CPU has its own.
//!
//! C header: [`include/linux/percpu.h`](srctree/include/linux/percpu.h)

use crate::bindings;
use core::{
    marker::PhantomData,
    mem,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    cpu::nr_cpu_ids,
    prelude::*, //
};

/// A `T` for each CPU that there may be, so that CPUs need not share its cache line.
///
/// # Invariants
///
/// Per-CPU memory for a `T`, which is initialised on all possible CPUs.
pub struct PerCpu<T>(NonNull<T>, PhantomData<T>);

// SAFETY: It owns its values, and they can be sent. Any thread can free per-CPU memory.
unsafe impl<T: Send> Send for PerCpu<T> {}
// SAFETY: All that others can do with it is to get at shared references to its values.
unsafe impl<T: Sync> Sync for PerCpu<T> {}

impl<T> PerCpu<T> {
    /// Calls `init` for each CPU; ENOMEM if there is no memory.
    pub fn new(mut init: impl FnMut() -> T) -> Result<Self> {
        const { assert!(size_of::<T>() != 0) };
        // SAFETY: The size is not zero, the alignment is that of a type.
        let values = unsafe {
            bindings::pcpu_alloc_noprof(
                size_of::<T>(),
                align_of::<T>(),
                false,
                bindings::GFP_KERNEL,
            )
        };
        let values = NonNull::new(values.cast::<T>()).ok_or(ENOMEM)?;
        for value in each(values) {
            // SAFETY: New memory for a `T`.
            unsafe { value.write(init()) };
        }
        // INVARIANT: Just allocated, and written on each CPU.
        Ok(Self(values, PhantomData))
    }

    /// The value of the CPU that this runs on; any context.
    ///
    /// A thread that is preempted goes on with the value of the CPU where it was.
    #[inline]
    pub fn here(&self) -> &T {
        // SAFETY: Per-CPU memory, with a `T` on each CPU by the type invariants; it is freed with
        // `self`, and until then there are only shared references.
        unsafe { &*bindings::dm_rs_helper_raw_cpu_ptr(self.0.as_ptr().cast()).cast::<T>() }
    }

    /// The values of all CPUs; any context.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        // SAFETY: As in `here`.
        each(self.0).map(|value| unsafe { value.as_ref() })
    }
}

impl<T> Drop for PerCpu<T> {
    /// In any context in which the values can be dropped.
    fn drop(&mut self) {
        if mem::needs_drop::<T>() {
            for value in each(self.0) {
                // SAFETY: Initialised by the type invariants; there are no more references, and it
                // is not used again.
                unsafe { ptr::drop_in_place(value.as_ptr()) };
            }
        }
        // SAFETY: Allocated by `new`, and nobody refers to it any more.
        unsafe { bindings::free_percpu(self.0.as_ptr().cast()) };
    }
}

/// Where the possible CPUs have what is at `values` of their per-CPU memory.
fn each<T>(values: NonNull<T>) -> impl Iterator<Item = NonNull<T>> {
    (0..nr_cpu_ids()).filter_map(move |cpu| {
        // SAFETY: `cpu` is the number of a CPU.
        if !unsafe { bindings::dm_rs_helper_cpu_possible(cpu) } {
            return None;
        }
        // SAFETY: As above; with that CPU's offset it is the address of that CPU's memory.
        let value = unsafe { bindings::dm_rs_helper_per_cpu_ptr(values.as_ptr().cast(), cpu) };
        NonNull::new(value.cast())
    })
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_percpu)]
mod tests {
    use super::*;
    use kernel::sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    };

    #[test]
    fn each_cpu_has_its_own() -> Result {
        let mut made = 0;
        let counts = PerCpu::new(|| {
            made += 1;
            Atomic::new(made)
        })?;
        assert!(made >= 1);
        assert_eq!(counts.iter().count(), made);
        for (i, count) in counts.iter().enumerate() {
            assert_eq!(count.load(Relaxed), i + 1);
        }

        let here = counts.here().fetch_add(1000, Relaxed);
        assert!((1..=made).contains(&here));
        let sum: usize = counts.iter().map(|count| count.load(Relaxed)).sum();
        assert_eq!(sum, 1000 + made * (made + 1) / 2);
        Ok(())
    }

    #[test]
    fn values_are_dropped() -> Result {
        let shared = Arc::new(0, GFP_KERNEL)?;
        let values = PerCpu::new(|| shared.clone())?;
        assert!(Arc::ptr_eq(values.here(), &shared));
        drop(values);
        assert!(Arc::into_unique_or_drop(shared).is_some());
        Ok(())
    }
}
