// SPDX-License-Identifier: GPL-2.0

//! What a pool's metadata looks like on its device.
//!
//! All numbers are little-endian. Nodes of trees and the blocks of space maps are told in
//! [`persistent_data`].

use zerocopy::byteorder::little_endian::{
    U32,
    U64, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

use persistent_data::{
    block::{
        BlockNr,
        BLOCK_SIZE, //
    },
    btree::Tree, //
};

/// Where the superblock is. A metadata snapshot is a superblock at another place.
pub const SUPERBLOCK_LOCATION: BlockNr = 0;

/// The magic number of a superblock.
pub const MAGIC: u64 = 27_022_010;

/// The version of the format that is written.
pub const VERSION: u32 = 2;

/// The seed of a superblock's checksum.
pub const SUPERBLOCK_CSUM_XOR: u32 = 160_774;

/// The bytes that a superblock has for the root of a space map.
pub const SPACE_MAP_ROOT_SIZE: usize = 128;

/// The bytes of a sector, the unit of sizes in tables and in the superblock.
pub const SECTOR_SIZE: u64 = 512;

/// The size of a metadata block in sectors.
pub const METADATA_BLOCK_SECTORS: u32 = (BLOCK_SIZE as u64 / SECTOR_SIZE) as u32;

/// The largest size of a metadata device in blocks: what lies beyond is not used.
///
/// The index of the metadata space map is one block of 255 entries, each for a bitmap of one block.
pub const METADATA_MAX_BLOCKS: u64 = 255 * ((1 << 14) - 64);

/// The largest size of a metadata device in sectors.
pub const METADATA_MAX_SECTORS: u64 = METADATA_MAX_BLOCKS * METADATA_BLOCK_SECTORS as u64;

/// The size in sectors beyond which a metadata device is larger than any pool needs: 16 GiB.
pub const METADATA_MAX_SECTORS_WARNING: u64 = 16 * ((1 << 30) / SECTOR_SIZE);

/// The largest part of the metadata device that is kept back for commits, in blocks: 16 MiB.
pub const METADATA_MAX_RESERVE: u64 = 4096;

/// The superblock's flag that the metadata must be checked before it may be written.
pub const FLAG_NEEDS_CHECK: u32 = 1 << 0;

/// The bits that a mapping has for its time.
pub const TIME_BITS: u32 = 24;

/// The largest time.
pub const MAX_TIME: u32 = (1 << TIME_BITS) - 1;

/// The largest number of data blocks that mappings can tell apart.
pub const MAX_DATA_BLOCKS: u64 = 1 << (64 - TIME_BITS);

/// The largest device id.
pub const MAX_DEVICE_ID: u64 = (1 << 24) - 1;

/// The superblock.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Superblock {
    /// The checksum of the rest of the block.
    pub csum: U32,
    /// [`FLAG_NEEDS_CHECK`].
    pub flags: U32,
    /// Where this block is.
    pub blocknr: U64,
    /// Not used; zeroes.
    pub uuid: [u8; 16],
    /// [`MAGIC`].
    pub magic: U64,
    /// [`VERSION`].
    pub version: U32,
    /// How many snapshots have been taken in this pool.
    pub time: U32,
    /// A number for programs that manage pools.
    pub trans_id: U64,
    /// Where the superblock of the metadata snapshot is; 0 for none.
    pub held_root: U64,
    /// The root of the data space map; zeroes in a metadata snapshot.
    pub data_space_map_root: [u8; SPACE_MAP_ROOT_SIZE],
    /// The root of the metadata space map; zeroes in a metadata snapshot.
    pub metadata_space_map_root: [u8; SPACE_MAP_ROOT_SIZE],
    /// The root of the mapping tree.
    pub data_mapping_root: U64,
    /// The root of the details tree.
    pub device_details_root: U64,
    /// The size of a data block in sectors.
    pub data_block_size: U32,
    /// The size of a metadata block in sectors.
    pub metadata_block_size: U32,
    /// The size of the metadata device in blocks, when it was formatted.
    pub metadata_nr_blocks: U64,
    /// Features that may be ignored.
    pub compat_flags: U32,
    /// Features that may be ignored by who does not write.
    pub compat_ro_flags: U32,
    /// Features that may not be ignored.
    pub incompat_flags: U32,
}

// Below the 512 bytes of a sector, which is written in one piece.
const _: () = assert!(size_of::<Superblock>() == 364);

/// What is known of a device.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct DeviceDetails {
    /// How many blocks are mapped.
    pub mapped_blocks: U64,
    /// The transaction id when it was created.
    pub transaction_id: U64,
    /// The time when it was created.
    pub creation_time: U32,
    /// The time when it was last part of a snapshot, as snapshot or origin: mappings that are older may be
    /// shared.
    pub snapshotted_time: U32,
}

const _: () = assert!(size_of::<DeviceDetails>() == 24);

/// Where a virtual block is: the data block in the upper 40 bits, the time of its mapping in the lower 24.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct BlockTime(U64);

impl BlockTime {
    /// Packs `block` and `time`; `None` if one of them does not fit.
    pub fn new(block: u64, time: u32) -> Option<Self> {
        if block >= MAX_DATA_BLOCKS || time > MAX_TIME {
            return None;
        }
        Some(Self::pack(block, time))
    }

    /// Packs what is known to fit.
    pub(crate) fn pack(block: u64, time: u32) -> Self {
        Self(U64::new((block << TIME_BITS) | u64::from(time & MAX_TIME)))
    }

    /// Both in one word, as they are on disk.
    pub fn to_word(self) -> u64 {
        self.0.get()
    }

    /// What [`to_word`](Self::to_word) gave.
    pub fn from_word(word: u64) -> Self {
        Self(U64::new(word))
    }

    /// The data block.
    pub fn block(self) -> u64 {
        self.0.get() >> TIME_BITS
    }

    /// The time of the mapping.
    pub fn time(self) -> u32 {
        (self.0.get() & u64::from(MAX_TIME)) as u32
    }
}

/// The tree of all mappings: device id → virtual block → [`BlockTime`].
pub type MappingTree = Tree<BlockTime, 2>;

/// The upper level of the mapping tree: device id → root of a [`DeviceTree`].
pub type TopTree = Tree<U64, 1>;

/// The mappings of one device: virtual block → [`BlockTime`].
pub type DeviceTree = Tree<BlockTime, 1>;

/// The details tree: device id → [`DeviceDetails`].
pub type DetailsTree = Tree<DeviceDetails, 1>;

#[cfg(any(test, dm_thin_kunit))]
#[cfg_attr(dm_thin_kunit, kernel::macros::kunit_tests(thin_metadata_format))]
mod tests {
    use super::*;

    #[test]
    fn block_time_packs_both_in_64_bits() {
        let packed = BlockTime::new(0x12_3456_789a, 0xab_cdef);
        assert_eq!(packed.map(|x| x.block()), Some(0x12_3456_789a));
        assert_eq!(packed.map(|x| x.time()), Some(0xab_cdef));
        assert_eq!(packed.map(|x| x.to_word()), Some(0x1234_5678_9aab_cdef));
        assert_eq!(packed, Some(BlockTime::from_word(0x1234_5678_9aab_cdef)));
    }

    #[test]
    fn block_time_refuses_what_does_not_fit() {
        assert!(BlockTime::new(MAX_DATA_BLOCKS - 1, MAX_TIME).is_some());
        assert!(BlockTime::new(MAX_DATA_BLOCKS, 0).is_none());
        assert!(BlockTime::new(0, MAX_TIME + 1).is_none());
    }

    #[test]
    fn limits_are_those_of_the_format() {
        assert_eq!(METADATA_MAX_BLOCKS, 4_161_600);
        assert_eq!(METADATA_MAX_SECTORS, 33_292_800);
        assert_eq!(METADATA_MAX_SECTORS_WARNING, 33_554_432);
        assert_eq!(METADATA_BLOCK_SECTORS, 8);
    }
}
