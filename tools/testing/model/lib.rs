// SPDX-License-Identifier: GPL-2.0

//! A model of dm-thin's lockless parts: all that may happen when threads run through them at once.
//!
//! `in_flight.rs`, `hold_set.rs` and `mapping_cache.rs` of the module are compiled here, with [`loom`]'s atomics and locks in place of
//! the kernel's. loom runs a test again and again, each time with another interleaving of the threads or another value
//! that a load may see on a processor that reorders, until it has seen all that can make a difference. Most tests limit
//! how often threads are interrupted where they need not wait; those that are ignored go deeper.
//!
//! A data block is a cell that loom watches. A bio that used a block after it went to another volume, or whose use is
//! not ordered before that, ends a test, as does a sleeper whom nobody wakes.
//!
//! - [`protocol`]: what bios, changes of a mapping and evictions do with a cached mapping.
//! - [`tests`]: that no bio ever uses a block which has become another's, and nobody sleeps forever.
//! - [`mutants`]: what is not the module, but the same with a barrier missing or steps in another order. `build.rs` makes
//!   them of the sources.
//!
//! `cells.rs`, the bio prison, is compiled here, too. Only the worker uses it, so there are no threads to interleave;
//! [`prison`] goes through all orders in which bios come and changes begin and end.
//!
//! What loom cannot see: loads that see a store which comes later, of another thread (load buffering), and interrupts,
//! which are played by other threads.

#![cfg(test)]

extern crate self as dm;
extern crate self as kernel;

mod alloc;
mod cache_pages;
#[path = "../../../rust/dm_thin/cells.rs"]
mod cells;
#[path = "../../../rust/dm_thin/hold_set.rs"]
mod hold_set;
#[path = "../../../rust/dm_thin/in_flight.rs"]
mod in_flight;
mod list;
#[expect(dead_code, reason = "it is played through in part")]
#[path = "../../../rust/dm_thin/mapping_cache.rs"]
mod mapping_cache;
mod mutants;
mod per_bio;
mod percpu;
mod prelude;
mod prison;
mod protocol;
mod rbtree;
#[path = "../../../rust/dm_thin/spare.rs"]
mod spare;
mod sparse_words;
mod sync;
mod tests;

use percpu::PerCpu;
use sparse_words::SparseWords;
