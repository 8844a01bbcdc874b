// SPDX-License-Identifier: GPL-2.0

//! Thin provisioning: the device-mapper targets `thin-pool` and `thin`.
//!
//! A pool ties a data device to a metadata device, which says where on the former the blocks of thin devices
//! are. Blocks are allocated when they are first written to; snapshots share blocks until one side writes.
//!
//! - [`thin_target`] and [`pool_target`] are what device-mapper calls; [`message`] are the pool's messages.
//! - [`registry`] knows all pools. [`pool`] is one: its [metadata](pool_metadata), [`control`] of its [`mode`], its
//!   [`features`]. What the mode becomes when something happens is for [`state`] to tell. [`reserve`] frees space
//!   where there is none left for metadata.
//! - A bio is remapped on the spot if its block is mapped, mostly without a look at the metadata: the
//!   [`mapping_cache`] knows, in [`cache_pages`] that all pools share. Everything else is for the pool's [`worker`],
//!   which [`process`]es the bios of all devices in its [`queue`] one after the other. A block whose mapping is about to
//!   change has a cell in [`cells`], and what it takes is [`spare`] if there is no memory; its new block is from the
//!   [`supply`]; a new [`mapping`] is made ready by the [`copier`], or by a bio that covers it; [`insertions`] get into
//!   the metadata together. Freed blocks are [`resting`] as long as bios that were [`in_flight`] then may get to them.
//! - What is not mapped reads as zeroes, or comes from an external [`origin`].
//! - [`discard`] unmaps blocks, [`pass_down`] discards them on the data device, and [`reclaim`] does so for those
//!   of deleted devices.

mod block_manager;
mod block_set;
mod block_size;
mod cache_pages;
mod cells;
mod control;
mod copier;
mod discard;
mod features;
mod hold;
mod hold_set;
mod in_flight;
mod insertions;
mod mapping;
mod mapping_cache;
mod message;
mod mode;
mod origin;
mod pass_down;
mod per_bio;
mod pool;
mod pool_metadata;
mod pool_target;
mod process;
mod queue;
mod reclaim;
mod registry;
mod reserve;
mod resting;
mod spare;
mod state;
mod supply;
mod thin;
mod thin_target;
mod thins;
mod throttle;
mod uncommitted;
mod worker;

use dm::Registration;
use kernel::prelude::*;

use crate::{
    pool_target::PoolTarget,
    thin_target::ThinTarget, //
};

/// The version of both targets, which tells user space what they can do.
const VERSION: [u32; 3] = [1, 24, 0];

/// What log lines begin with, after `device-mapper: `.
const LOG_PREFIX: &str = "thin";

module! {
    type: DmThin,
    name: "dm_thin_pool",
    authors: ["Developers of dm-thin in Rust"],
    description: "device-mapper thin provisioning target",
    license: "GPL",
}

// The C module has none. DKMS replaces a module only by one of another version.
dm::modinfo!(dm_thin_pool, "version=", "0.1.0");

#[pin_data]
struct DmThin {
    #[pin]
    thin: Registration<ThinTarget>,
    #[pin]
    pool: Registration<PoolTarget>,
    #[cfg(dm_coverage)]
    _coverage: dm::coverage::Files,
}

impl kernel::InPlaceModule for DmThin {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        cache_pages::init();
        try_pin_init!(Self {
            thin <- Registration::new(),
            pool <- Registration::new(),
            #[cfg(dm_coverage)]
            _coverage: dm::coverage::Files::new()?,
        })
    }
}
