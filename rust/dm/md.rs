// SPDX-License-Identifier: GPL-2.0

//! Mapped devices.

use crate::{
    bindings,
    DevT, //
};
use core::ptr::NonNull;

/// The identity of a mapped device, to be compared. The order says nothing about the devices.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MdId(usize);

impl MdId {
    pub(crate) fn from_raw(md: *const bindings::mapped_device) -> Self {
        Self(md.addr())
    }
}

/// A counted reference to a mapped device.
///
/// The device cannot be removed meanwhile: whoever removes it waits. So drop it soon, and never
/// keep it in a target.
pub struct Md(NonNull<bindings::mapped_device>);

// SAFETY: The reference is counted, it may be dropped on any thread.
unsafe impl Send for Md {}
// SAFETY: There is nothing that `&Md` could change.
unsafe impl Sync for Md {}

impl Md {
    /// The mapped device with this number, unless there is none or it is being removed.
    pub fn find(number: DevT) -> Option<Self> {
        // SAFETY: The function takes any number.
        NonNull::new(unsafe { bindings::dm_get_md(number.0) }).map(Self)
    }

    /// Its identity.
    pub fn id(&self) -> MdId {
        MdId::from_raw(self.0.as_ptr())
    }
}

impl Drop for Md {
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { bindings::dm_put(self.0.as_ptr()) };
    }
}
