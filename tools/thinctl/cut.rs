// SPDX-License-Identifier: GPL-2.0

//! Being killed at a chosen moment, for tests.
//!
//! Whatever changes something that lasts, a device, a file of thinctl's own or data, is a point. If the environment has
//! `THINCTL_CUT=n`, the process kills itself before the n-th.

use std::sync::{
    atomic::{
        AtomicU64,
        Ordering, //
    },
    OnceLock,
};

use rustix::process::{
    getpid,
    kill_process,
    Signal, //
};

/// The variable of the environment.
pub const VARIABLE: &str = "THINCTL_CUT";

/// How many points are left; `None` if it is not to be killed.
static LEFT: OnceLock<Option<AtomicU64>> = OnceLock::new();

/// To be called before each.
pub fn point() {
    let left = LEFT.get_or_init(|| {
        let number = std::env::var(VARIABLE).ok()?;
        number.parse().ok().map(AtomicU64::new)
    });
    if let Some(left) = left {
        // It is no matter in which order threads come by.
        if left.fetch_sub(1, Ordering::Relaxed) == 1 {
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}
