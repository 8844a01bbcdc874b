// SPDX-License-Identifier: GPL-2.0

//! What was executed of the module's code, for a build with `--cfg dm_coverage`.
//!
//! The compiler counts in one section and describes the counters in two others. The linker script
//! `tools/testing/coverage/sections.lds` says where each one begins and ends, and [`Files`] lets
//! user space read them.

use core::ptr::addr_of;

use crate::bindings;
use kernel::{
    prelude::*,
    str::CStr,
    types::Opaque, //
};

extern "C" {
    static dm_coverage_data_start: u8;
    static dm_coverage_data_end: u8;
    static dm_coverage_counts_start: u8;
    static dm_coverage_counts_end: u8;
    static dm_coverage_names_start: u8;
    static dm_coverage_names_end: u8;
}

/// A file of debugfs with the content of a part of the module.
struct Blob(Opaque<bindings::debugfs_blob_wrapper>);

impl Blob {
    fn new(start: *const u8, end: *const u8) -> Self {
        Self(Opaque::new(bindings::debugfs_blob_wrapper {
            data: start.cast_mut().cast(),
            size: end.addr().wrapping_sub(start.addr()),
        }))
    }
}

/// The folder `dm-thin-coverage` of debugfs, with the files `data`, `counts` and `names`.
///
/// Dropping it removes them.
pub struct Files {
    folder: *mut bindings::dentry,
    _blobs: KVec<Blob>,
}

// SAFETY: What it points to is for debugfs to synchronise; nothing is done with it until the drop.
unsafe impl Send for Files {}
// SAFETY: There are no `&self` methods.
unsafe impl Sync for Files {}

impl Files {
    /// Makes the files.
    pub fn new() -> Result<Self> {
        // Only the addresses are taken.
        let sections: [(&CStr, *const u8, *const u8); 3] = [
            (
                c"data",
                addr_of!(dm_coverage_data_start),
                addr_of!(dm_coverage_data_end),
            ),
            (
                c"counts",
                addr_of!(dm_coverage_counts_start),
                addr_of!(dm_coverage_counts_end),
            ),
            (
                c"names",
                addr_of!(dm_coverage_names_start),
                addr_of!(dm_coverage_names_end),
            ),
        ];
        let mut blobs = KVec::with_capacity(sections.len(), GFP_KERNEL)?;
        for (_, start, end) in sections {
            blobs.push(Blob::new(start, end), GFP_KERNEL)?;
        }
        // SAFETY: The name is a C string.
        let folder = unsafe {
            bindings::debugfs_create_dir(c"dm-thin-coverage".as_char_ptr(), core::ptr::null_mut())
        };
        for ((name, _, _), blob) in sections.iter().zip(&blobs) {
            // SAFETY: The name is a C string. The blob, and what it describes, stays where it is
            // until the folder is removed: the sections are part of the module.
            unsafe {
                bindings::debugfs_create_blob(name.as_char_ptr(), 0o400, folder, blob.0.get())
            };
        }
        Ok(Self {
            folder,
            _blobs: blobs,
        })
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // SAFETY: The folder is ours; an error in its place is let pass.
        unsafe { bindings::debugfs_remove(self.folder) };
    }
}
