// SPDX-License-Identifier: GPL-2.0

//! Batching of bios.

use crate::bindings;
use core::mem::MaybeUninit;

/// Runs `f` with a plug: bios that it submits are passed on in batches.
pub fn with_plug<R>(f: impl FnOnce() -> R) -> R {
    struct Plug<'a>(&'a mut MaybeUninit<bindings::blk_plug>);

    impl Drop for Plug<'_> {
        fn drop(&mut self) {
            // SAFETY: Started below, by the same thread, and not moved since.
            unsafe { bindings::blk_finish_plug(self.0.as_mut_ptr()) };
        }
    }

    let mut plug = MaybeUninit::uninit();
    // SAFETY: `plug` is writable and stays where it is until it is finished.
    unsafe { bindings::blk_start_plug(plug.as_mut_ptr()) };
    let _plug = Plug(&mut plug);
    f()
}
