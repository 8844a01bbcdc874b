// SPDX-License-Identifier: GPL-2.0

//! Batching of bios.

use crate::bindings;
use kernel::types::Opaque;

/// Runs `f` with a plug: bios that it submits are passed on in batches.
pub fn with_plug<R>(f: impl FnOnce() -> R) -> R {
    struct Plug<'a>(&'a Opaque<bindings::blk_plug>);

    impl Drop for Plug<'_> {
        fn drop(&mut self) {
            // SAFETY: Started below, by the same thread, and not moved since.
            unsafe { bindings::blk_finish_plug(self.0.get()) };
        }
    }

    let plug = Opaque::uninit();
    // SAFETY: `plug` is writable and stays where it is until it is finished.
    unsafe { bindings::blk_start_plug(plug.get()) };
    let _plug = Plug(&plug);
    f()
}
