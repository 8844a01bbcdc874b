// SPDX-License-Identifier: GPL-2.0

//! Device-mapper targets in safe Rust.
//!
//! A target is a type that implements [`Target`]; a [`Registration`] makes it known to the
//! device-mapper core. Everything such a type needs from the kernel beyond the `kernel` crate is
//! here: bios that are owned and so cannot be lost ([`Bio`], [`BioList`]), devices ([`Dev`]), the
//! metadata cache ([`bufio`]), copying ([`kcopyd`]), discards ([`Discard`]), work queues
//! ([`workqueue`]) and locks.
//!
//! `own_bio` and `kthread` are only there for the load generator of the benchmark, that is with `--cfg dm_load`.
//!
//! # Contexts
//!
//! Unless a function says otherwise it may sleep. [`Target::end_io`], completions of [`Discard`], and
//! whatever is dropped there, may run in interrupt context.
//!
//! # Unloading
//!
//! Work, copies and discards of this module can outlive the target that started them. Each of them
//! keeps a count up, and [`Registration`] waits on drop until that count is zero, so code of the
//! module never runs after the module is gone.
//!
//! C header: [`include/linux/device-mapper.h`](srctree/include/linux/device-mapper.h)

/// The bindings that `kernel::bindings` lacks; types are shared with it where it has them.
#[allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::cast_lossless,
    clippy::as_underscore,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unnecessary_transmutes,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]
mod bindings {
    pub use kernel::bindings::*;
    use kernel::ffi;
    use pin_init::{MaybeZeroable, Zeroable};

    // SAFETY: A newtype around `Storage`.
    unsafe impl<Storage> Zeroable for __BindgenBitfieldUnit<Storage> where Storage: Zeroable {}

    include!(env!("DM_BINDINGS"));
}

pub mod args;
pub mod bio;
mod bio_list;
mod blk_status;
pub mod bufio;
#[cfg(dm_coverage)]
pub mod coverage;
mod ctr;
mod dev;
mod discard;
pub mod kcopyd;
#[cfg(dm_load)]
pub mod kthread;
mod lease;
mod limits;
mod live;
pub mod log;
mod md;
mod message;
#[doc(hidden)]
pub mod modinfo;
mod noio;
mod output;
#[cfg(dm_load)]
pub mod own_bio;
pub mod params;
mod percpu;
mod plug;
mod registration;
mod rwsem;
mod shrinker;
pub mod sparse_words;
mod static_mutex;
mod target;
mod ti;
pub mod workqueue;

pub use args::Args;
pub use bio::{
    Bio,
    Op, //
};
pub use bio_list::BioList;
pub use blk_status::BlkStatus;
pub use ctr::Ctr;
pub use dev::{
    Dev,
    DevT,
    Mode, //
};
pub use discard::{
    Discard,
    DiscardDone, //
};
pub use limits::Limits;
pub use md::{
    Md,
    MdId, //
};
pub use message::Message;
pub use noio::NoIo;
pub use output::Output;
pub use percpu::PerCpu;
pub use plug::with_plug;
pub use registration::Registration;
pub use rwsem::{
    ReadGuard,
    RwSemaphore,
    WriteGuard,
    WriteNoIoGuard, //
};
pub use shrinker::{
    total_memory,
    Shrink,
    Shrinker, //
};
pub use sparse_words::SparseWords;
pub use static_mutex::StaticMutex;
pub use target::{
    EachDevice,
    EndIo,
    Features,
    Map,
    StatusFlags,
    StatusKind,
    Stop,
    Target, //
};
pub use ti::Ti;

/// A sector number or count; a sector has 512 bytes.
pub type Sector = u64;

/// Bytes in a sector, as a shift.
pub const SECTOR_SHIFT: u32 = 9;

/// The prefix of the kernel crate's `pr_*!` macros.
pub(crate) const __LOG_PREFIX: &[u8] = b"device-mapper\0";
