// SPDX-License-Identifier: GPL-2.0

//! Persistent, copy-on-write data structures for device-mapper targets.
//!
//! The library keeps B+trees, arrays, bitsets and space maps in the blocks of a metadata device. Changes
//! are made to copies of blocks ("shadows") and become visible all at once when a new superblock is
//! written, so a crash leaves either the old or the new state. The same source builds in the kernel and,
//! for tests and tools, in user space.
//!
//! From the bottom up:
//!
//! - [`block`]: what a block is, and the [`block::Validator`] that checks one and seals it for writing.
//! - [`block_manager`]: cached access to blocks through read and write guards.
//! - [`transaction`]: the only way to a writable block, and reference counts of blocks.
//! - [`space_map`]: which blocks are in use, and how often.
//! - [`transaction_manager`]: a transaction on a metadata device, over its own space map.
//! - [`btree`]: maps from 64-bit keys to values, nested to any number of levels.
//! - [`array`] and [`bitset`]: fixed-size values by index.
//!
//! There are no locks inside. Shared reads go through `&`, changes through `&mut`; the caller owns the
//! lock that makes this true between threads. Lookups need only a block manager, changes need a
//! transaction.
//!
//! Nothing read from a device is trusted. Blocks are validated when they enter the cache, and what
//! validation of one block cannot know (that a tree has no loops, that levels fit together) is checked on
//! the way.

pub mod array;
pub mod bitset;
pub mod block;
pub mod block_manager;
pub mod btree;
#[cfg(not(CONFIG_RUST))]
pub mod cached;
#[cfg(not(CONFIG_RUST))]
pub mod direct;
pub mod error;
#[cfg(not(CONFIG_RUST))]
pub mod file;
#[cfg(not(CONFIG_RUST))]
pub mod memory;
pub mod platform;
mod prefetch_set;
pub mod space_map;
pub mod transaction;
pub mod transaction_manager;

pub use error::{
    Error,
    Result, //
};

#[cfg(CONFIG_RUST)]
const __LOG_PREFIX: &[u8] = b"persistent_data\0";
