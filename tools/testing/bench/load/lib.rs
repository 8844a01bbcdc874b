// SPDX-License-Identifier: GPL-2.0

//! The load generator of the benchmark: the device-mapper target `load`.
//!
//! ```text
//! load <device>
//! ```
//!
//! The target takes no I/O. It has one message, which runs a load on the device from threads of the kernel's, and
//! replies when that is over:
//!
//! ```text
//! run <op> <pattern> <bytes> <count> [<key>=<n>]...
//! ```
//!
//! [`settings`] tells what the words mean, [`report`] what the reply says. [`pattern`] says where I/O goes: for a
//! shuffle a [`permutation`] does. [`thread`] submits it, [`histogram`] counts how long it took.
//!
//! Beside it there are targets for tests: that of [`order`] for power cuts, and that of [`gate`], which holds I/O.

mod gate;
mod histogram;
mod message;
mod order;
mod pattern;
mod permutation;
mod report;
mod settings;
mod target;
mod thread;

use dm::Registration;
use kernel::prelude::*;

use crate::{
    gate::GateTarget,
    order::OrderTarget,
    target::LoadTarget, //
};

/// What log lines begin with, after `device-mapper: `.
const LOG_PREFIX: &str = "load";

module! {
    type: DmLoad,
    name: "dm_load",
    authors: ["Developers of dm-thin in Rust"],
    description: "device-mapper load generator for benchmarks",
    license: "GPL",
}

#[pin_data]
struct DmLoad {
    #[pin]
    load: Registration<LoadTarget>,
    #[pin]
    order: Registration<OrderTarget>,
    #[pin]
    gate: Registration<GateTarget>,
}

impl kernel::InPlaceModule for DmLoad {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            load <- Registration::new(),
            order <- Registration::new(),
            gate <- Registration::new(),
        })
    }
}
