// SPDX-License-Identifier: GPL-2.0

//! Hostile metadata: images that are wrong in ways which checksums do not tell, and programs of operations on them.
//!
//! An [`input`] is a string of bytes, of any content. It stands for one of the [`base`] images, some [`edit`]s of it, and
//! a [`program`] of operations on the pool that the edited image holds. The fuzzer makes up inputs, helped by
//! [`mutator`]; a panic is what it looks for. Panics are also what the oracles end with:
//!
//! - an operation that asks for far more blocks than there are ([`store`]);
//! - a block of the last commit that is written to, while the image was all right at the beginning ([`store`]);
//! - such an image that is not all right any more, by the reference counts that [`checker`] works out on its own, or that
//!   gives errors which only bad metadata give;
//! - a data block beyond the end of the data device, or one that is in use, which is handed out ([`program`]).

pub mod base;
pub mod checker;
pub mod edit;
pub mod format;
pub mod image;
pub mod input;
pub mod mutator;
pub mod program;
pub mod store;

#[cfg(test)]
mod tests;
