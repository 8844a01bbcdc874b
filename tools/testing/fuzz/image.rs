// SPDX-License-Identifier: GPL-2.0

//! Images as copies on write of base images, and what kinds their blocks are of.

use std::collections::BTreeMap;

use persistent_data::block::{
    checksum,
    seal_checksum,
    BlockData,
    BLOCK_SIZE, //
};

use crate::base::Base;

/// A kind of block, which its checksum tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The superblock, or that of a metadata snapshot.
    Superblock,
    /// A node of any tree.
    Node,
    /// The index of the metadata space map.
    Index,
    /// A bitmap of a space map.
    Bitmap,
    /// None of them.
    Other,
}

const SEEDS: [(Kind, u32); 4] = [
    (Kind::Superblock, 160_774),
    (Kind::Node, 121_107),
    (Kind::Index, 160_478),
    (Kind::Bitmap, 240_779),
];

impl Kind {
    /// What kind a block with a right checksum is of.
    pub fn of(data: &BlockData) -> Self {
        let found = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
        let is = |seed| checksum(data, seed) == found;
        SEEDS
            .iter()
            .find(|(_, seed)| is(*seed))
            .map_or(Self::Other, |(kind, _)| *kind)
    }

    /// Whether a block has the checksum of this kind.
    pub fn is_right(self, data: &BlockData) -> bool {
        let found = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
        SEEDS
            .iter()
            .any(|(kind, seed)| *kind == self && checksum(data, *seed) == found)
    }

    /// Gives a block the checksum of this kind.
    pub fn seal(self, data: &mut BlockData) {
        if let Some((_, seed)) = SEEDS.iter().find(|(kind, _)| *kind == self) {
            seal_checksum(data, *seed);
        }
    }
}

/// Reads a number of `width` bytes.
pub fn get(data: &BlockData, offset: usize, width: usize) -> u64 {
    if width == 8 {
        if let Some(bytes) = data.get(offset..).and_then(|rest| rest.first_chunk()) {
            return u64::from_le_bytes(*bytes);
        }
    }
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(data.iter().skip(offset).take(width)) {
        *to = *from;
    }
    u64::from_le_bytes(bytes)
}

/// Writes a number of `width` bytes, as far as they are within the block.
pub fn set(data: &mut BlockData, offset: usize, width: usize, value: u64) {
    let bytes = value.to_le_bytes();
    for (to, from) in data.iter_mut().skip(offset).take(width).zip(bytes) {
        *to = from;
    }
}

/// A base image with some blocks changed.
pub struct Image {
    base: &'static Base,
    changed: BTreeMap<u64, (Kind, Box<BlockData>)>,
}

/// What is beyond a base image.
static ZEROES: BlockData = [0; BLOCK_SIZE];

impl Image {
    /// The base image, unchanged.
    pub fn new(base: &'static Base) -> Self {
        Self {
            base,
            changed: BTreeMap::new(),
        }
    }

    /// What it was made from.
    pub fn base(&self) -> &'static Base {
        self.base
    }

    /// A block; zeroes beyond the end.
    pub fn block(&self, block: u64) -> &BlockData {
        match self.changed.get(&block) {
            Some((_, data)) => data,
            None => self.base.block(block).unwrap_or(&ZEROES),
        }
    }

    /// The kind of a block.
    pub fn kind(&self, block: u64) -> Kind {
        match self.changed.get(&block) {
            Some((kind, _)) => *kind,
            None => self.base.kind(block),
        }
    }

    /// A block, to be changed.
    pub fn block_mut(&mut self, block: u64) -> &mut BlockData {
        let base = self.base;
        let (_, data) = self.changed.entry(block).or_insert_with(|| {
            let data = base.block(block).unwrap_or(&ZEROES);
            (base.kind(block), Box::new(*data))
        });
        data
    }

    /// Writes a whole block.
    pub fn write(&mut self, block: u64, kind: Kind, data: &BlockData) {
        match self.changed.get_mut(&block) {
            Some(changed) => {
                changed.0 = kind;
                changed.1.copy_from_slice(data);
            }
            None => {
                self.changed.insert(block, (kind, Box::new(*data)));
            }
        }
    }

    /// Gives a changed block the checksum of its kind.
    pub fn seal(&mut self, block: u64) {
        if let Some((kind, data)) = self.changed.get_mut(&block) {
            kind.seal(data);
        }
    }

    /// The blocks that were changed.
    pub fn changed(&self) -> Vec<u64> {
        self.changed.keys().copied().collect()
    }
}
