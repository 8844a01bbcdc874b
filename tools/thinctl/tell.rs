// SPDX-License-Identifier: GPL-2.0

//! Messages for whoever has called the program.

use std::{
    fmt::Display,
    io::{
        self,
        Write, //
    },
};

use crate::quiet;

/// Writes a message to standard error, but not before this process has resumed what it has suspended. That nobody can read
/// it is no reason to stop.
pub fn tell(what: impl Display) {
    let what = what.to_string();
    if quiet::keeps(&what) {
        return;
    }
    write(&what);
}

/// Writes it now.
pub(crate) fn write(what: &str) {
    // At once, so that no other message gets in between.
    let _ = io::stderr().write_all(format!("thinctl: {what}\n").as_bytes());
}
