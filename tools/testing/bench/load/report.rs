// SPDX-License-Identifier: GPL-2.0

//! What comes out of a run.

use core::fmt;

use crate::histogram::Histogram;

/// What one thread, or all of them, have done. It is shown as
///
/// ```text
/// ns=<n> ios=<n> errors=<n> min=<n> p50=<n> p99=<n> p999=<n> max=<n>
/// ```
///
/// `ns` is the time from the first submission to the last end, `ios` counts bios and `errors` those of them that
/// failed. The rest tells how long a bio took, in nanoseconds, and is zero unless measured.
pub(crate) struct Report {
    pub(crate) ios: u64,
    pub(crate) errors: u64,
    /// When the first bio was submitted, and when the last one had ended, in nanoseconds.
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) times: Histogram,
}

impl Report {
    /// Of nothing; `times` is empty.
    pub(crate) fn new(times: Histogram) -> Self {
        Self {
            ios: 0,
            errors: 0,
            first: u64::MAX,
            last: 0,
            times,
        }
    }

    /// Adds what another thread did.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.ios = self.ios.saturating_add(other.ios);
        self.errors = self.errors.saturating_add(other.errors);
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.times.merge(&other.times);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ns={} ios={} errors={} min={} p50={} p99={} p999={} max={}",
            self.last.saturating_sub(self.first),
            self.ios,
            self.errors,
            self.times.min(),
            self.times.permille(500),
            self.times.permille(990),
            self.times.permille(999),
            self.times.max()
        )
    }
}
