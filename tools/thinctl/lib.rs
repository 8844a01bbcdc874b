// SPDX-License-Identifier: GPL-2.0

//! thinctl: what metadata snapshots of thin-provisioning pools are for.
//!
//! A pool's metadata say which blocks of a thin volume are mapped, and which of them two volumes share. A metadata
//! snapshot lets a program read them while the pool goes on. So a backup, a migration, a merge or a replication can
//! find out what has changed by looking at the metadata, and read nothing else.
//!
//! From the bottom up:
//!
//! - [`error`]: what can go wrong, and the exit code for it.
//! - [`state`]: the name of what a volume contains.
//! - [`stream`]: the changes that lead from one state to another, as bytes for a pipe or a file.

pub mod error;
pub mod state;
pub mod stream;

pub use error::{
    Error,
    Result, //
};
