// SPDX-License-Identifier: GPL-2.0

//! Being killed or stopped at a chosen moment, for tests.
//!
//! Whatever changes something that lasts, a device, a file of thinctl's own or data, is a point. If the environment has
//! `THINCTL_CUT=n`, the process kills itself before the n-th; with `THINCTL_HALT=n`, it stops there until it is told to go
//! on.

use std::sync::{
    atomic::{
        AtomicU64,
        Ordering, //
    },
    LazyLock,
};

use rustix::process::{
    getpid,
    kill_process,
    Signal, //
};

/// The variables of the environment.
pub const VARIABLES: [&str; 2] = ["THINCTL_CUT", "THINCTL_HALT"];

/// How many points are left until each; `None` if it is not to come.
static LEFT: LazyLock<[Option<AtomicU64>; 2]> = LazyLock::new(|| {
    VARIABLES.map(|variable| {
        let number = std::env::var(variable).ok()?;
        number.parse().ok().map(AtomicU64::new)
    })
});

/// To be called before each.
pub fn point() {
    for (left, signal) in LEFT.iter().zip([Signal::KILL, Signal::STOP]) {
        // It is no matter in which order threads come by.
        if left
            .as_ref()
            .is_some_and(|left| left.fetch_sub(1, Ordering::Relaxed) == 1)
        {
            let _ = kill_process(getpid(), signal);
        }
    }
}
