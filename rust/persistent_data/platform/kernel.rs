// SPDX-License-Identifier: GPL-2.0

//! The kernel.

use kernel::prelude::*;

use super::TryVec;
use crate::error::{
    Error,
    Result, //
};

pub use core::sync::atomic;
pub use kernel::alloc::{
    KBox as Box,
    KVVec as Vec, //
};

// Metadata is changed on the way of writing memory back, so the callers of this library hold a
// `memalloc_noio` scope wherever that matters, which turns these flags into `GFP_NOIO`.
const FLAGS: kernel::alloc::Flags = GFP_KERNEL;

impl<T> TryVec<T> for Vec<T> {
    fn try_with_room(n: usize) -> Result<Self> {
        Vec::with_capacity(n, FLAGS).map_err(|_| Error::NoMemory)
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

extern "C" {
    // `include/linux/crc32.h`
    #[link_name = "crc32c"]
    fn kernel_crc32c(crc: u32, p: *const core::ffi::c_void, len: usize) -> u32;
}

/// CRC32C of `data` with all ones as the initial value and no final inversion.
pub fn crc32c(data: &[u8]) -> u32 {
    // SAFETY: `data` is valid for reads of its length.
    unsafe { kernel_crc32c(!0, data.as_ptr().cast(), data.len()) }
}

impl From<Error> for kernel::error::Error {
    fn from(e: Error) -> Self {
        kernel::error::Error::from_errno(-e.errno())
    }
}
