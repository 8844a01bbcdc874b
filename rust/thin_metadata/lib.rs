// SPDX-License-Identifier: GPL-2.0

//! The metadata of a thin-provisioning pool.
//!
//! A pool's metadata says which thin devices exist, which virtual block of each maps to which block of the
//! data device, and which data blocks are in use. It lives on a device of its own, in the structures of
//! [`persistent_data`]:
//!
//! - A superblock in block 0, fewer than 512 bytes, so that it is written in one piece.
//! - The metadata space map, which counts the references to metadata blocks.
//! - The data space map, which counts the references to data blocks.
//! - The details tree: device id → [`format::DeviceDetails`].
//! - The mapping tree, of two levels: device id → virtual block → [`format::BlockTime`], the data block and
//!   the time of its mapping.
//!
//! **Time** counts snapshots. A mapping made before its device's last snapshot may be shared with that
//! snapshot; one made after cannot be. So a look-up says whether a block may be shared without looking at
//! reference counts.
//!
//! **Transactions.** All changes since the last commit become permanent together, by one write of the
//! superblock, or not at all. [`Metadata::abort`] gives them up.
//!
//! **Metadata snapshots.** [`Metadata::reserve_metadata_snap`] keeps the state of the last commit, while the
//! pool goes on, for programs that read the metadata device. [`View`] reads it.
//!
//! There are no locks inside; see [`persistent_data`].

pub mod device;
pub mod error;
pub mod format;
pub mod mapping;
pub mod metadata;
pub mod superblock;
pub mod view;

mod data_blocks;
mod diff;
mod held_root;
mod space;
mod thin;
mod transaction;

#[cfg(test)]
mod tests;

pub use data_blocks::Freed;
pub use device::{
    DeviceId,
    ThinHandle, //
};
pub use error::{
    Error,
    Result, //
};
pub use mapping::{
    DataBlock,
    MappedRange,
    Mapping,
    VirtualBlock, //
};
pub use metadata::{
    Metadata,
    OpenParams,
    MAX_HELD, //
};
pub use transaction::Flushed;
pub use view::View;

#[cfg(CONFIG_RUST)]
const __LOG_PREFIX: &[u8] = b"thin_metadata\0";
