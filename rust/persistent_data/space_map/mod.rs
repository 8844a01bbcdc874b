// SPDX-License-Identifier: GPL-2.0

//! Which blocks are in use, and how often.
//!
//! A space map counts the references to each block of a device. Counts from 0 to 2 are kept in bitmaps of two
//! bits for each block, greater ones in a btree from block to a count of 32 bits. An index says where the bitmaps
//! are: a btree for a [`DiskSpaceMap`], and a single block for the metadata device's own space map. The
//! [`SmRoot`] in the superblock has what is needed to find it all.
//!
//! No space map hands out a block that the last committed transaction uses, or that was handed out before in
//! the same transaction.

mod bitmap;
mod candidates;
mod checker;
mod counts;
pub mod disk;
mod full_bitmaps;
mod index;
mod index_block;
pub mod metadata;
mod pending;
mod shadow_set;
mod threshold;

#[cfg(any(test, dm_thin_kunit))]
mod small_tests;
#[cfg(test)]
mod tests;

pub use disk::DiskSpaceMap;
pub(crate) use index_block::BlockIndex;
pub(crate) use pending::Change;

use zerocopy::byteorder::little_endian::U64;
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

use crate::block::BlockNr;

/// The most blocks that a metadata device's space map can count: what one index block can refer to.
///
/// Blocks of the device beyond that are not used.
pub const MAX_METADATA_BLOCKS: BlockNr =
    index_block::MAX_ENTRIES as BlockNr * bitmap::NR_ENTRIES as BlockNr;

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

/// The number of bitmaps for `nr_blocks` blocks.
fn nr_bitmaps(nr_blocks: BlockNr) -> u64 {
    nr_blocks.div_ceil(u64::from(bitmap::NR_ENTRIES))
}

/// Which bitmap has a block's entry, and where.
fn place(block: BlockNr) -> (u64, u32) {
    let n = u64::from(bitmap::NR_ENTRIES);
    (block / n, (block % n) as u32)
}

/// The block that the first entry of a bitmap is for.
fn first_of_bitmap(i: u64) -> BlockNr {
    i.saturating_mul(u64::from(bitmap::NR_ENTRIES))
}
