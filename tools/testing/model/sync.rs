// SPDX-License-Identifier: GPL-2.0

//! As much of `kernel::sync` as is needed, over loom.

pub(crate) use std::sync::Arc;

use loom::sync::{
    Condvar,
    Mutex,
    MutexGuard, //
};

/// Atomics with the kernel's orderings.
pub(crate) mod atomic {
    use super::barrier::smp_mb;
    use loom::sync::atomic::AtomicUsize;
    use ordering::{
        Full,
        Ordering, //
    };
    use std::marker::PhantomData;

    /// The orderings.
    pub(crate) mod ordering {
        use loom::sync::atomic::Ordering as Loom;

        /// An ordering.
        pub(crate) trait Ordering {
            /// What loom calls it, apart from the barriers.
            const OP: Loom;
            /// Whether there is a full barrier before and after the operation.
            const FULL: bool = false;
        }

        pub(crate) struct Relaxed;
        pub(crate) struct Acquire;
        pub(crate) struct Release;
        pub(crate) struct Full;

        impl Ordering for Relaxed {
            const OP: Loom = Loom::Relaxed;
        }
        impl Ordering for Acquire {
            const OP: Loom = Loom::Acquire;
        }
        impl Ordering for Release {
            const OP: Loom = Loom::Release;
        }
        impl Ordering for Full {
            const OP: Loom = Loom::AcqRel;
            const FULL: bool = true;
        }
    }

    /// What an atomic can hold.
    pub(crate) trait AtomicType {
        fn to_word(self) -> usize;
        fn from_word(word: usize) -> Self;
    }

    macro_rules! atomic_type {
        ($($t:ty)*) => {
            $(
                impl AtomicType for $t {
                    fn to_word(self) -> usize {
                        self as usize
                    }

                    fn from_word(word: usize) -> Self {
                        word as Self
                    }
                }
            )*
        };
    }
    atomic_type!(i32 u32 u64 usize);

    impl AtomicType for bool {
        fn to_word(self) -> usize {
            self.into()
        }

        fn from_word(word: usize) -> Self {
            word != 0
        }
    }

    /// An atomic value.
    pub(crate) struct Atomic<T>(AtomicUsize, PhantomData<T>);

    impl<T: AtomicType> Atomic<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(AtomicUsize::new(value.to_word()), PhantomData)
        }

        pub(crate) fn load<O: Ordering>(&self, _: O) -> T {
            T::from_word(self.0.load(O::OP))
        }

        pub(crate) fn store<O: Ordering>(&self, value: T, _: O) {
            self.0.store(value.to_word(), O::OP);
        }

        pub(crate) fn xchg<O: Ordering>(&self, value: T, _: O) -> T {
            T::from_word(ordered::<O>(|| self.0.swap(value.to_word(), O::OP)))
        }

        pub(crate) fn fetch_add<O: Ordering>(&self, value: T, _: O) -> T {
            T::from_word(ordered::<O>(|| self.0.fetch_add(value.to_word(), O::OP)))
        }
    }

    fn ordered<O: Ordering>(op: impl FnOnce() -> usize) -> usize {
        if !O::FULL {
            return op();
        }
        smp_mb(Full);
        let result = op();
        smp_mb(Full);
        result
    }

    /// An atomic flag.
    pub(crate) type AtomicFlag = Atomic<bool>;
}

/// Read-copy-update: here nothing is freed.
pub(crate) mod rcu {
    /// A read-side critical section.
    pub(crate) struct Guard;

    impl Drop for Guard {
        fn drop(&mut self) {}
    }

    pub(crate) fn read_lock() -> Guard {
        Guard
    }
}

/// Barriers.
pub(crate) mod barrier {
    use super::atomic::ordering::Full;
    use loom::sync::atomic::{
        fence,
        AtomicUsize,
        Ordering, //
    };

    loom::lazy_static! {
        static ref BARRIERS: AtomicUsize = AtomicUsize::new(0);
    }

    /// A full barrier.
    ///
    /// loom tries two things in either order if both use the same object and one changes it. That
    /// the order of two barriers matters, too, it learns by an object that each of them changes;
    /// relaxed, which orders nothing by itself.
    pub(crate) fn smp_mb(_: Full) {
        BARRIERS.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

macro_rules! new_spinlock_irq {
    ($inner:expr, $name:literal) => {
        $crate::sync::SpinLockIrq::new($inner)
    };
}
pub(crate) use new_spinlock_irq;

macro_rules! new_condvar {
    ($name:literal) => {
        $crate::sync::CondVar::new()
    };
}
pub(crate) use new_condvar;

/// A spin lock; here there are no interrupts.
pub(crate) struct SpinLockIrq<T>(Mutex<T>);

/// The hold on a spin lock.
pub(crate) struct Guard<'a, T>(Option<MutexGuard<'a, T>>);

impl<T> SpinLockIrq<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self(Mutex::new(inner))
    }

    pub(crate) fn lock(&self) -> Guard<'_, T> {
        Guard(self.0.lock().ok())
    }
}

/// A condition variable.
pub(crate) struct CondVar(Condvar);

impl CondVar {
    pub(crate) fn new() -> Self {
        Self(Condvar::new())
    }

    pub(crate) fn wait<T>(&self, guard: &mut Guard<'_, T>) {
        guard.0 = guard.0.take().and_then(|guard| self.0.wait(guard).ok());
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}
