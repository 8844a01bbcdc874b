// SPDX-License-Identifier: GPL-2.0

//! thinctl: what metadata snapshots of thin-provisioning pools are for.
//!
//! A pool's metadata say which blocks of a thin volume are mapped, and which of them two volumes share. A metadata
//! snapshot lets a program read them while the pool goes on. So a backup, a migration, a merge or a replication can
//! find out what has changed by looking at the metadata, and read nothing else.
//!
//! From the bottom up:
//!
//! - `files`: files that are there as a whole or not at all.
//! - [`error`], [`size`], [`date`], [`progress`], [`rate`]: what can go wrong, numbers of bytes and moments, how far work
//!   is and how fast it may be.
//! - [`walk`]: going through metadata.
//! - [`diff`], [`census`], [`usage`], [`relations`], [`map`]: what metadata say; [`svg`] and [`terminal`] draw it, with
//!   [`colour`] and [`bits`] underneath.
//! - [`state`], [`stream`]: the name of what a volume contains, and what leads from one state to another.
//! - [`repository`]: backups in a folder.
//! - [`cut`]: being killed at a chosen moment, for tests.
//! - [`dm`], [`pool`], [`device`]: device-mapper, pools, and the data of volumes.
//! - [`home`], [`identity`], [`journal`], [`signals`], [`guard`]: what is remembered, and what is undone however a
//!   process ends; [`quiet`]: what must not be done while a volume is suspended.
//! - [`lvm2`], [`id`]: what is left to lvm2 in its pools, and which ids are whose.
//! - [`stack`]: what a device lies on.
//! - [`turn`], [`memory`], [`backing`]: who may suspend a volume, and what must not lie on it.
//! - [`session`], [`naming`], [`unchanged`]: work with one pool, which state a volume is in, and whether it still is.
//! - [`extents`], [`room`], [`below`], [`copy`]: lists of changes, whether there is room for them, here or in the pools that a
//!   device lies on, and the data for them.
//! - [`program`], [`family`]: commands that take a stream, and what belongs to them.
//! - [`anchors`]: the snapshots that something goes on from.
//! - [`send`], [`receive`], [`into`], [`backup`], [`merge`], [`migrate`] with [`migration`], [`replicate`]: what it is all for.
//! - [`kept`], [`numbering`]: what these keep in a pool, and that lvm2 does not come to use the same ids.
//! - [`cli`], [`number`], [`commands`], [`manual`], [`tell`]: the command line, manual pages, and messages.

pub mod anchors;
pub mod backing;
pub mod backup;
pub mod below;
pub mod bits;
pub mod census;
pub mod cli;
pub mod colour;
pub mod commands;
pub mod copy;
pub mod cut;
pub mod date;
pub mod device;
pub mod diff;
pub mod dm;
pub mod error;
pub mod extents;
pub mod family;
mod files;
pub mod guard;
pub mod home;
pub mod id;
pub mod identity;
pub mod into;
pub mod journal;
pub mod kept;
pub mod lvm2;
pub mod manual;
pub mod map;
pub mod memory;
pub mod merge;
pub mod migrate;
pub mod migration;
pub mod naming;
pub mod number;
pub mod numbering;
pub mod pool;
pub mod program;
pub mod progress;
pub mod quiet;
pub mod rate;
pub mod receive;
pub mod relations;
pub mod replicate;
pub mod repository;
pub mod room;
pub mod send;
pub mod session;
pub mod signals;
pub mod size;
pub mod stack;
pub mod state;
pub mod stream;
pub mod svg;
pub mod tell;
pub mod terminal;
pub mod turn;
pub mod unchanged;
pub mod usage;
pub mod walk;

pub use error::{
    Error,
    Result, //
};
