// SPDX-License-Identifier: GPL-2.0

//! Panics as what they are here: violations.

use std::panic::{
    catch_unwind,
    AssertUnwindSafe, //
};

use crate::world::Violation;

/// Runs `f`, whose panics are violations, too.
pub fn caught<T>(f: impl FnOnce() -> Result<T, Violation>) -> Result<T, Violation> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", text.unwrap_or("?")))
    })
}
