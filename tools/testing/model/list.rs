// SPDX-License-Identifier: GPL-2.0

//! As much of `kernel::list` as it takes to compile what can be in a list. Nothing here is.

/// Where a list has its links.
pub(crate) struct ListLinks;

/// Whether something is in a list.
pub(crate) struct AtomicTracker;

impl ListLinks {
    pub(crate) fn new() -> Self {
        Self
    }
}

impl AtomicTracker {
    pub(crate) fn new() -> Self {
        Self
    }
}

macro_rules! impl_list_arc_safe {
    (impl ListArcSafe<0> for $type:ty { $($by:tt)* }) => {
        impl TryNewListArc for $type {}
    };
}
pub(crate) use impl_list_arc_safe;

macro_rules! impl_list_item {
    ($($impl:tt)*) => {};
}
pub(crate) use impl_list_item;

/// What can be put into a list by one of several references to it.
pub(crate) trait TryNewListArc {}
