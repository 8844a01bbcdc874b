// SPDX-License-Identifier: GPL-2.0

//! Allocation without I/O.

use crate::bindings;
use kernel::{
    ffi::c_uint,
    types::NotThreadSafe, //
};

/// While it exists, no allocation of this thread starts I/O to get memory.
///
/// Code that I/O waits for, and code with a lock that such code takes, must allocate in such a
/// scope. Scopes nest.
pub struct NoIo {
    flags: c_uint,
    _not_send: NotThreadSafe,
}

impl NoIo {
    /// Enters the scope.
    #[must_use = "the scope ends when this is dropped"]
    pub fn enter() -> Self {
        Self {
            // SAFETY: It changes a flag of the current thread.
            flags: unsafe { bindings::dm_rs_helper_memalloc_noio_save() },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for NoIo {
    fn drop(&mut self) {
        // SAFETY: `flags` are of the same thread, as we are not `Send`.
        unsafe { bindings::dm_rs_helper_memalloc_noio_restore(self.flags) };
    }
}
