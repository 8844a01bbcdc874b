// SPDX-License-Identifier: GPL-2.0

//! Which blocks are in use, and how often.

pub mod disk;
pub mod metadata;

pub use disk::DiskSpaceMap;

use zerocopy::byteorder::little_endian::U64;
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

/// What a superblock keeps of a space map.
#[derive(
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Debug,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct SmRoot {
    /// The number of blocks that are counted.
    pub nr_blocks: U64,
    /// The number of blocks whose count is not zero.
    pub nr_allocated: U64,
    /// The root of the index of bitmaps.
    pub bitmap_root: U64,
    /// The root of the tree of reference counts above two.
    pub ref_count_root: U64,
}
