// SPDX-License-Identifier: GPL-2.0

//! References to metadata blocks, as they are found.

use persistent_data::block::BlockData;

use super::{
    u32_at,
    u64_at,
    Result, //
};
use crate::image::Blocks;

/// What a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Not seen yet.
    Unknown,
    Superblock,
    /// The metadata space map's index.
    Index,
    Bitmap,
    /// Nodes, by the tree.
    RefCounts,
    DataIndex,
    Details,
    TopLevel,
    Mappings,
}

/// The references that were found to each metadata block, and what was read of them.
pub(super) struct Counts<'a, B: ?Sized> {
    blocks: &'a B,
    seen: Vec<(u32, Kind)>,
}

impl<'a, B: Blocks + ?Sized> Counts<'a, B> {
    pub(super) fn new(blocks: &'a B) -> Self {
        Self {
            blocks,
            seen: vec![(0, Kind::Unknown); blocks.nr_blocks() as usize],
        }
    }

    pub(super) fn blocks(&self) -> &'a B {
        self.blocks
    }

    fn seen_mut(&mut self, block: u64) -> Result<&mut (u32, Kind)> {
        usize::try_from(block)
            .ok()
            .and_then(|block| self.seen.get_mut(block))
            .ok_or_else(|| format!("block {block} is beyond the end"))
    }

    /// Counts a reference; says whether it is the first one.
    pub(super) fn add_reference(&mut self, block: u64, kind: Kind) -> Result<bool> {
        let seen = self.seen_mut(block)?;
        if seen.1 != Kind::Unknown && seen.1 != kind {
            return Err(format!("block {block} is {kind:?} and {:?}", seen.1));
        }
        seen.1 = kind;
        seen.0 += 1;
        Ok(seen.0 == 1)
    }

    /// A block of which a reference was counted.
    pub(super) fn block(&self, block: u64) -> &'a BlockData {
        self.blocks.block(block)
    }

    /// A block with the right checksum, that says at `location` where it is.
    pub(super) fn checked(&self, block: u64, xor: u32, location: usize) -> Result<&'a BlockData> {
        let data = self.blocks.block(block);
        let sum = !crc32c::crc32c(&data[4..]) ^ xor;
        if u32_at(data, 0) != sum {
            return Err(format!("block {block}: checksum"));
        }
        if u64_at(data, location) != block {
            return Err(format!(
                "block {block} says it is {}",
                u64_at(data, location)
            ));
        }
        Ok(data)
    }

    /// All counts.
    pub(super) fn finish(self) -> Vec<u32> {
        self.seen.into_iter().map(|(count, _)| count).collect()
    }
}
