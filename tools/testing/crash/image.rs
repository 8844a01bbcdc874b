// SPDX-License-Identifier: GPL-2.0

//! Images of metadata devices.

use std::sync::Arc;

use persistent_data::{
    block::{
        BlockData,
        BlockNr,
        BLOCK_SIZE, //
    },
    cached::Device,
    error::{
        Error,
        Result, //
    },
};

use crate::rng::mix;

/// The number of sectors in a block: what a device writes in one piece.
pub const SECTORS: usize = 8;

const SECTOR_SIZE: usize = BLOCK_SIZE / SECTORS;

static ZEROES: BlockData = [0; BLOCK_SIZE];

/// What has blocks that can be looked at.
pub trait Blocks {
    /// How many there are.
    fn nr_blocks(&self) -> BlockNr;

    /// One of them.
    fn block(&self, block: BlockNr) -> &BlockData;
}

/// A whole image in one piece; what is beyond the last full block does not count.
impl Blocks for [u8] {
    fn nr_blocks(&self) -> BlockNr {
        (self.len() / BLOCK_SIZE) as BlockNr
    }

    fn block(&self, block: BlockNr) -> &BlockData {
        self.as_chunks::<BLOCK_SIZE>()
            .0
            .get(block as usize)
            .unwrap_or(&ZEROES)
    }
}

/// A block with the hashes of its sectors.
#[derive(Clone)]
pub struct Written {
    data: BlockData,
    hashes: [u64; SECTORS],
}

impl Written {
    /// A block's content.
    pub fn new(data: &BlockData) -> Arc<Self> {
        let mut hashes = [0; SECTORS];
        for (hash, sector) in hashes.iter_mut().zip(data.chunks_exact(SECTOR_SIZE)) {
            *hash = hash_sector(sector);
        }
        Arc::new(Self {
            data: *data,
            hashes,
        })
    }

    /// The content.
    pub fn data(&self) -> &BlockData {
        &self.data
    }

    /// What is there when the sectors of `mask` reach the device, and the others stay as they were in `old`.
    pub fn torn(&self, mask: u8, old: Option<&Self>) -> Arc<Self> {
        let mut torn = self.clone();
        for sector in (0..SECTORS).filter(|sector| mask & (1 << sector) == 0) {
            let range = sector * SECTOR_SIZE..(sector + 1) * SECTOR_SIZE;
            match old {
                Some(old) => {
                    torn.data[range.clone()].copy_from_slice(&old.data[range]);
                    torn.hashes[sector] = old.hashes[sector];
                }
                None => {
                    torn.data[range].fill(0);
                    torn.hashes[sector] = 0;
                }
            }
        }
        Arc::new(torn)
    }

    /// A hash of the content at `block`, to be added to those of the other blocks.
    fn hash_at(&self, block: BlockNr) -> u64 {
        let mut sum = 0u64;
        for (sector, hash) in self.hashes.iter().enumerate() {
            if *hash != 0 {
                let place = block * SECTORS as u64 + sector as u64;
                sum = sum.wrapping_add(mix(hash ^ mix(place + 1)));
            }
        }
        sum
    }
}

/// Zero for zeroes.
fn hash_sector(sector: &[u8]) -> u64 {
    let mut hash = 0u64;
    let mut used = false;
    for (i, word) in sector.as_chunks::<8>().0.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        if word != 0 {
            used = true;
            hash = mix(hash ^ word).wrapping_add(i as u64);
        }
    }
    match used {
        true => hash.max(1),
        false => 0,
    }
}

/// The content of a device, most of which is zeroes.
#[derive(Clone, Default)]
pub struct Disk {
    blocks: Vec<Option<Arc<Written>>>,
    hash: u64,
}

impl Disk {
    /// Zeroes.
    pub fn new(nr_blocks: BlockNr) -> Self {
        Self {
            blocks: vec![None; nr_blocks as usize],
            hash: 0,
        }
    }

    /// A hash of the whole content.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// What was written to a block, if anything was.
    pub fn get(&self, block: BlockNr) -> Option<&Arc<Written>> {
        self.blocks.get(block as usize)?.as_ref()
    }

    /// Changes a block and gives what was there.
    pub fn set(&mut self, block: BlockNr, to: Option<Arc<Written>>) -> Option<Arc<Written>> {
        let hash_of =
            |written: &Option<Arc<Written>>| written.as_ref().map_or(0, |w| w.hash_at(block));
        let new = hash_of(&to);
        let old = std::mem::replace(&mut self.blocks[block as usize], to);
        self.hash = self.hash.wrapping_add(new).wrapping_sub(hash_of(&old));
        old
    }

    /// Cuts it, or adds zeroes at its end.
    pub fn resize(&mut self, nr_blocks: BlockNr) {
        for block in nr_blocks..self.nr_blocks() {
            self.set(block, None);
        }
        self.blocks.resize(nr_blocks as usize, None);
    }

    /// All in one piece.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.blocks.len() * BLOCK_SIZE);
        for block in 0..self.nr_blocks() {
            bytes.extend_from_slice(self.block(block));
        }
        bytes
    }
}

impl Blocks for Disk {
    fn nr_blocks(&self) -> BlockNr {
        self.blocks.len() as BlockNr
    }

    fn block(&self, block: BlockNr) -> &BlockData {
        self.get(block).map_or(&ZEROES, |written| &written.data)
    }
}

/// A disk that is only read.
pub struct ReadOnly<'a>(pub &'a Disk);

impl Device for ReadOnly<'_> {
    fn nr_blocks(&self) -> BlockNr {
        self.0.nr_blocks()
    }

    fn read(&self, block: BlockNr, data: &mut BlockData) -> Result {
        data.copy_from_slice(self.0.block(block));
        Ok(())
    }

    fn write(&self, _: BlockNr, _: &BlockData) -> Result {
        Err(Error::ReadOnly)
    }

    fn flush(&self) -> Result {
        Err(Error::ReadOnly)
    }
}
