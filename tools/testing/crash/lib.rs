// SPDX-License-Identifier: GPL-2.0

//! Power cuts, failing I/O and failing memory, for the metadata of pools.
//!
//! A [`recorder::Recorder`] is a device that notes every write and every flush. [`world::World`] runs random commands
//! ([`op::Op`]) on a pool on such a device, and on a model of it. [`replay`] takes the record and makes what a loss of
//! power may leave: any subset of the writes that were not flushed, each torn at the borders of sectors. Each such state
//! must pass the [`check`]er, open, and hold exactly what the superblock in it was written for, to the last mapping.
//! [`faults`] has every single read, write, flush and allocation of a run fail.
//!
//! The [`check`]er is of its own: it reads images by their format, without the libraries that wrote them.

pub mod caught;
pub mod check;
pub mod faults;
pub mod image;
#[path = "../../../rust/thin_metadata/tests/model.rs"]
pub mod model;
pub mod op;
pub mod recorder;
pub mod replay;
pub mod report;
pub mod rng;
#[path = "../../../rust/thin_metadata/tests/tools.rs"]
pub mod tools;
pub mod world;

use thin_metadata::DeviceId;
