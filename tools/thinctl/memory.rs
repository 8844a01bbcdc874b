// SPDX-License-Identifier: GPL-2.0

//! The memory of this process.

use rustix::mm::{
    mlockall,
    MlockAllFlags, //
};

use crate::error::{
    Error,
    Result, //
};

/// Keeps all of it where it is, and what is added later: nothing needs to be read from a disk, or written to one, for this
/// process to go on. For whoever suspends devices, as the program or the swap may lie on one.
pub fn lock() -> Result {
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)
        .map_err(|e| Error::io("memory that stays where it is")(e.into()))
}
