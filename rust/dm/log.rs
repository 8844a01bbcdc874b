// SPDX-License-Identifier: GPL-2.0

//! Log lines as the targets in C write them: `device-mapper: thin: 252:4: ...`.
//!
//! The macros [`err!`], [`warn!`] and [`info!`] take the target's prefix, then a format. Those with
//! `_limited` print at most ten lines in five seconds for each place in the code.

use kernel::{
    bindings,
    fmt,
    print::{
        call_printk,
        format_strings, //
    },
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// How grave a line is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// An error.
    Err,
    /// A warning.
    Warn,
    /// Normal operation.
    Info,
}

/// Writes a line; use the macros.
#[doc(hidden)]
pub fn print(level: Level, args: fmt::Arguments<'_>) {
    let format = match level {
        Level::Err => &format_strings::ERR,
        Level::Warn => &format_strings::WARNING,
        Level::Info => &format_strings::INFO,
    };
    // SAFETY: The format is one of those for it, the prefix ends with a zero.
    unsafe { call_printk(format, crate::__LOG_PREFIX, args) };
}

/// Limits the lines of one place in the code; use the macros.
#[doc(hidden)]
pub struct Limit {
    /// When the current period began, in jiffies, and how many lines it has had.
    begin: Atomic<u64>,
    lines: Atomic<u32>,
}

impl Limit {
    const LINES: u32 = 10;
    const PERIOD: u64 = 5 * bindings::HZ as u64;

    /// Nothing was printed yet.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self {
            begin: Atomic::new(0),
            lines: Atomic::new(0),
        }
    }

    /// Whether a line may be printed now.
    pub fn allows(&self) -> bool {
        // SAFETY: Jiffies may be read at any time.
        self.allows_at(unsafe { (&raw const bindings::jiffies).read_volatile() } as u64)
    }

    fn allows_at(&self, now: u64) -> bool {
        let begin = self.begin.load(Relaxed);
        if now.wrapping_sub(begin) >= Self::PERIOD
            && self.begin.cmpxchg(begin, now, Relaxed).is_ok()
        {
            self.lines.store(0, Relaxed);
        }
        // It cannot wrap around: what is beyond the limit is not counted.
        self.lines.load(Relaxed) < Self::LINES && self.lines.fetch_add(1, Relaxed) < Self::LINES
    }
}

/// Prints a line of a level.
#[doc(hidden)]
#[macro_export]
macro_rules! __dm_print {
    ($level:ident, $prefix:expr, $($arg:tt)+) => {
        $crate::log::print(
            $crate::log::Level::$level,
            ::kernel::prelude::fmt!("{}: {}\n", $prefix, ::kernel::prelude::fmt!($($arg)+)),
        )
    };
}

/// Prints a line of a level unless there were too many.
#[doc(hidden)]
#[macro_export]
macro_rules! __dm_print_limited {
    ($($arg:tt)+) => {{
        static LIMIT: $crate::log::Limit = $crate::log::Limit::new();
        if LIMIT.allows() {
            $crate::__dm_print!($($arg)+);
        }
    }};
}

/// Logs an error, like `DMERR`.
#[macro_export]
macro_rules! dm_err {
    ($($arg:tt)+) => { $crate::__dm_print!(Err, $($arg)+) };
}
/// Logs a warning, like `DMWARN`.
#[macro_export]
macro_rules! dm_warn {
    ($($arg:tt)+) => { $crate::__dm_print!(Warn, $($arg)+) };
}
/// Logs normal operation, like `DMINFO`.
#[macro_export]
macro_rules! dm_info {
    ($($arg:tt)+) => { $crate::__dm_print!(Info, $($arg)+) };
}
/// Logs an error, like `DMERR_LIMIT`.
#[macro_export]
macro_rules! dm_err_limited {
    ($($arg:tt)+) => { $crate::__dm_print_limited!(Err, $($arg)+) };
}
/// Logs a warning, like `DMWARN_LIMIT`.
#[macro_export]
macro_rules! dm_warn_limited {
    ($($arg:tt)+) => { $crate::__dm_print_limited!(Warn, $($arg)+) };
}

pub use {
    dm_err as err,
    dm_err_limited as err_limited,
    dm_info as info,
    dm_warn as warn,
    dm_warn_limited as warn_limited, //
};

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_log)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        let limit = Limit::new();
        let printed = (0..100).filter(|_| limit.allows_at(1_000_000)).count();
        assert_eq!(printed, 10);
        assert!(!limit.allows_at(1_000_000 + Limit::PERIOD - 1));
        assert!(limit.allows_at(1_000_000 + Limit::PERIOD));
    }
}
