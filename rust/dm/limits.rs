// SPDX-License-Identifier: GPL-2.0

//! Queue limits.

use crate::bindings;
use kernel::types::Opaque;
#[cfg(dm_thin_kunit)]
use kernel::{
    error::to_result,
    prelude::*, //
};

/// The limits of a device's queue, to be read and, in [`Target::io_hints`], changed.
///
/// [`Target::io_hints`]: crate::Target::io_hints
#[repr(transparent)]
pub struct Limits(Opaque<bindings::queue_limits>);

macro_rules! limits {
    ($($(#[$doc:meta])* $get:ident, $set:ident;)*) => {
        impl Limits {$(
            $(#[$doc])*
            #[inline]
            pub fn $get(&self) -> u32 {
                // SAFETY: `self` is a valid `struct queue_limits`; other users of a live queue may
                // change a field at any time, hence the volatile read.
                unsafe { (&raw const (*self.0.get()).$get).read_volatile() }
            }

            /// Sets what the function without `set_` reads.
            #[inline]
            pub fn $set(&mut self, value: u32) {
                // SAFETY: `self` is a valid `struct queue_limits` that is ours alone, as we have
                // a unique reference.
                unsafe { (*self.0.get()).$get = value };
            }
        )*}
    };
}

limits! {
    /// The largest I/O of the file system, in sectors.
    max_sectors, set_max_sectors;
    /// The largest I/O of the hardware, in sectors.
    max_hw_sectors, set_max_hw_sectors;
    /// Addressable unit, in bytes.
    logical_block_size, set_logical_block_size;
    /// Smallest unit that is written without a read, in bytes.
    physical_block_size, set_physical_block_size;
    /// Preferred smallest I/O, in bytes.
    io_min, set_io_min;
    /// Preferred I/O, in bytes.
    io_opt, set_io_opt;
    /// The largest discard, in sectors.
    max_discard_sectors, set_max_discard_sectors;
    /// The largest discard of the hardware, in sectors.
    max_hw_discard_sectors, set_max_hw_discard_sectors;
    /// Unit of discards, in bytes; zero means that there are none.
    discard_granularity, set_discard_granularity;
    /// Offset of the first discard unit, in bytes.
    discard_alignment, set_discard_alignment;
    /// The largest write-zeroes, in sectors.
    max_write_zeroes_sectors, set_max_write_zeroes_sectors;
    /// The largest write-zeroes that frees the space instead of writing, in sectors: zero, or equal to
    /// [`max_write_zeroes_sectors`](Self::max_write_zeroes_sectors).
    max_hw_wzeroes_unmap_sectors, set_max_hw_wzeroes_unmap_sectors;
}

impl Limits {
    /// # Safety
    ///
    /// `ptr` must be valid for `'a`.
    pub(crate) unsafe fn from_raw<'a>(ptr: *const bindings::queue_limits) -> &'a Self {
        // SAFETY: By the function's requirements; the type is transparent.
        unsafe { &*ptr.cast() }
    }

    /// # Safety
    ///
    /// `ptr` must be valid and used by nobody else for `'a`.
    pub(crate) unsafe fn from_raw_mut<'a>(ptr: *mut bindings::queue_limits) -> &'a mut Self {
        // SAFETY: By the function's requirements; the type is transparent.
        unsafe { &mut *ptr.cast() }
    }
}

#[cfg(dm_thin_kunit)]
impl Limits {
    /// Those of a mapped device with nothing below.
    pub fn of_nothing() -> Self {
        let limits = Opaque::new(pin_init::zeroed());
        // SAFETY: The limits are ours alone, and all of them are set.
        unsafe { bindings::blk_set_stacking_limits(limits.get()) };
        Self(limits)
    }

    /// What the core says about them when a table is resumed.
    pub fn validate(&mut self) -> Result {
        // SAFETY: `self` is a valid `struct queue_limits` that is ours alone, as we have a unique reference.
        to_result(unsafe { bindings::blk_validate_limits(self.0.get()) })
    }
}
