// SPDX-License-Identifier: GPL-2.0

//! Allocation without I/O.

use crate::bindings;
use kernel::{
    ffi::c_uint,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    task::Task,
    types::NotThreadSafe, //
};

/// While it exists, no allocation of this thread starts I/O to get memory.
///
/// Code that I/O waits for, and code with a lock that such code takes, must allocate in such a
/// scope. Scopes nest, and may end in any order.
pub struct NoIo {
    kind: Kind,
    _not_send: NotThreadSafe,
}

/// What is to be done when a scope ends.
enum Kind {
    /// The thread's first one, which has set the thread's flag and takes it away again.
    First(c_uint),
    /// It began in another one, of this crate or of the kernel's, and is noted here.
    Nested(&'static Note),
    /// As above, but there was no place to note it. It ends with the first one.
    Unnoted,
}

/// Stands for a nested scope: the address of its task, with [`LAST`] added if it has to take the thread's flag away;
/// zero if it is not in use. Once in use it is changed by the task only.
type Note = Atomic<usize>;

/// The first scope has ended before.
const LAST: usize = 1;

const SETS: usize = 64;
const WAYS: usize = 16;

/// The nested scopes of all threads. Those of a thread are in the set that belongs to it.
///
/// There is one at most in most threads that have any, so this is room for some hundred of threads, without an
/// allocation in the very places that must not wait for one.
static NOTES: [[Note; WAYS]; SETS] = [const { [const { Atomic::new(0) }; WAYS] }; SETS];

/// This thread, and the set that belongs to it.
fn this_thread() -> (usize, &'static [Note; WAYS]) {
    const GOLDEN_RATIO: usize = 0x61c8_8646_80b5_83eb;
    const SHIFT: u32 = usize::BITS - SETS.trailing_zeros();
    let task = Task::current_raw().addr();
    let set = task.wrapping_mul(GOLDEN_RATIO) >> SHIFT;
    (task, NOTES.get(set).unwrap_or(&NOTES[0]))
}

impl NoIo {
    /// Enters the scope.
    #[must_use = "the scope ends when this is dropped"]
    pub fn enter() -> Self {
        // SAFETY: It changes a flag of the current thread.
        let flag = unsafe { bindings::dm_rs_helper_memalloc_noio_save() };
        let kind = match flag {
            0 => {
                let (task, notes) = this_thread();
                let claimed = notes
                    .iter()
                    .find(|note| note.cmpxchg(0, task, Relaxed).is_ok());
                claimed.map_or(Kind::Unnoted, Kind::Nested)
            }
            flag => Kind::First(flag),
        };
        Self {
            kind,
            _not_send: NotThreadSafe,
        }
    }

    /// The scope that has to take the flag away ends: another one of this thread has to do it now, if there is one.
    fn end(flag: c_uint) {
        let (task, notes) = this_thread();
        match notes.iter().find(|note| note.load(Relaxed) == task) {
            Some(note) => note.store(task | LAST, Relaxed),
            // SAFETY: The flag was set by a scope of this thread, as scopes are not `Send`, and none is left.
            None => unsafe { bindings::dm_rs_helper_memalloc_noio_restore(flag) },
        }
    }
}

impl Drop for NoIo {
    fn drop(&mut self) {
        match self.kind {
            Kind::First(flag) => Self::end(flag),
            Kind::Nested(note) => {
                if note.xchg(0, Relaxed) & LAST != 0 {
                    Self::end(bindings::PF_MEMALLOC_NOIO);
                }
            }
            Kind::Unnoted => {}
        }
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_noio)]
mod tests {
    use super::*;

    /// Whether allocations of this thread do without I/O.
    fn is_on() -> bool {
        // SAFETY: It changes a flag of the current thread, and takes it back.
        unsafe {
            let flag = bindings::dm_rs_helper_memalloc_noio_save();
            bindings::dm_rs_helper_memalloc_noio_restore(flag);
            flag == 0
        }
    }

    /// Ends three scopes in this order. Whether it was on until the last one ended.
    fn is_on_throughout(order: [usize; 3]) -> bool {
        let mut scopes = [(); 3].map(|()| Some(NoIo::enter()));
        order.into_iter().fold(true, |so_far, i| {
            let is_on = is_on();
            scopes[i] = None;
            so_far && is_on
        })
    }

    #[test]
    fn scopes_end_in_any_order() {
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            assert!(!is_on());
            assert!(is_on_throughout(order));
            assert!(!is_on());
        }
    }

    #[test]
    fn what_was_on_before_stays() {
        // SAFETY: It changes a flag of the current thread.
        let flag = unsafe { bindings::dm_rs_helper_memalloc_noio_save() };
        for order in [[0, 1, 2], [2, 0, 1]] {
            assert!(is_on_throughout(order));
            assert!(is_on());
        }
        // SAFETY: As above; all scopes have ended.
        unsafe { bindings::dm_rs_helper_memalloc_noio_restore(flag) };
        assert!(!is_on());
    }

    #[test]
    fn all_notes_are_given_back() {
        for _ in 0..4 {
            // More than there is room for.
            let scopes = [(); 2 * WAYS].map(|()| NoIo::enter());
            assert!(is_on());
            drop(scopes);
            assert!(!is_on());
        }
        assert!(this_thread().1.iter().all(|note| note.load(Relaxed) == 0));
    }
}
