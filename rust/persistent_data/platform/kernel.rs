// SPDX-License-Identifier: GPL-2.0

//! The kernel.

use kernel::prelude::*;

use super::TryVec;
use crate::error::{
    Error,
    Result, //
};

pub use kernel::{
    alloc::{
        KBox as Box,
        KVVec as Vec, //
    },
    sync::atomic, //
};

// Metadata is changed on the way of writing memory back, so the callers of this library hold a
// `memalloc_noio` scope wherever that matters, which turns these flags into `GFP_NOIO`.
const FLAGS: kernel::alloc::Flags = GFP_KERNEL;

impl<T> TryVec<T> for Vec<T> {
    fn try_with_room(n: usize) -> Result<Self> {
        Vec::with_capacity(n, FLAGS).map_err(|_| Error::NoMemory)
    }

    fn try_reserve_room(&mut self, n: usize) -> Result {
        self.reserve(n, FLAGS).map_err(|_| Error::NoMemory)
    }

    fn try_push(&mut self, x: T) -> Result {
        self.push(x, FLAGS).map_err(|_| Error::NoMemory)
    }

    fn try_filled(x: T, n: usize) -> Result<Self>
    where
        T: Clone,
    {
        Vec::from_elem(x, n, FLAGS).map_err(|_| Error::NoMemory)
    }
}

pub(super) fn new_box<T>(x: T) -> Option<Box<T>> {
    Box::new(x, FLAGS).ok()
}

/// What `kernel::bindings` lacks.
#[allow(clippy::all, missing_docs, unreachable_pub)]
mod bindings {
    use kernel::{
        bindings::*,
        ffi, //
    };

    include!(env!("PERSISTENT_DATA_BINDINGS"));
}

/// CRC32C of `data` with all ones as the initial value and no final inversion.
pub fn crc32c(data: &[u8]) -> u32 {
    // SAFETY: `data` is valid for reads of its length.
    unsafe { bindings::crc32c(!0, data.as_ptr().cast(), data.len()) }
}

impl From<Error> for kernel::error::Error {
    fn from(e: Error) -> Self {
        kernel::error::Error::from_errno(-e.errno())
    }
}
