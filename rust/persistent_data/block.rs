// SPDX-License-Identifier: GPL-2.0

//! Blocks, their checksums and the validators that check them.

use core::ops::Range;

use crate::{
    error::{
        Error,
        Result, //
    },
    platform,
};

/// The number of a block on a device.
pub type BlockNr = u64;

/// A half-open range of blocks.
pub type BlockRange = Range<BlockNr>;

/// The size of a metadata block in bytes.
pub const BLOCK_SIZE: usize = 4096;

/// The content of a block.
pub type BlockData = [u8; BLOCK_SIZE];

/// What a kind of block looks like: how to check one that was read, and how to seal one for writing.
///
/// A validator is told from others by its address, so it must be a `static`. A block manager checks a
/// block once, when the block enters its cache.
pub struct Validator {
    /// The kind of block, for messages.
    pub name: &'static str,
    /// Checks a block that was read from `BlockNr`.
    pub check: fn(&BlockData, BlockNr) -> Result,
    /// Fills in location and checksum of a block that is about to be written to `BlockNr`.
    pub prepare: fn(&mut BlockData, BlockNr),
}

impl Validator {
    /// Whether both are the same validator.
    pub fn is(&'static self, other: &'static Validator) -> bool {
        core::ptr::eq(self, other)
    }
}

/// The checksum of `data`: CRC32C of all but the first four bytes, mixed with the kind's `xor` seed.
///
/// All kinds of blocks keep their checksum, little-endian, in the first four bytes.
pub fn checksum(data: &BlockData, xor: u32) -> u32 {
    platform::crc32c(&data[4..]) ^ xor
}

/// Checks the checksum in the first four bytes of `data`.
pub fn check_checksum(data: &BlockData, block: BlockNr, xor: u32) -> Result {
    let wanted = checksum(data, xor);
    let found = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
    if found != wanted {
        return Err(Error::Checksum {
            block,
            wanted,
            found,
        });
    }
    Ok(())
}

/// Writes the checksum into the first four bytes of `data`.
pub fn seal_checksum(data: &mut BlockData, xor: u32) {
    let sum = checksum(data, xor);
    data[..4].copy_from_slice(&sum.to_le_bytes());
}

/// Checks that a block which says it is `found` was read from `block`.
pub fn check_location(block: BlockNr, found: BlockNr) -> Result {
    if found != block {
        return Err(Error::WrongLocation { block, found });
    }
    Ok(())
}
