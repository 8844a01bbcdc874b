// SPDX-License-Identifier: GPL-2.0

//! Space maps.

use super::{
    counts::{
        Counts,
        Kind, //
    },
    tree::Tree,
    u32_at,
    u64_at,
    Result, //
};
use crate::image::Blocks;

pub(super) const INDEX_CSUM_XOR: u32 = 160_478;
pub(super) const BITMAP_CSUM_XOR: u32 = 240_779;

/// Where the entries of an index block or a bitmap begin.
const HEADER_SIZE: usize = 16;
const INDEX_ENTRIES: u64 = 255;
const ENTRIES_PER_WORD: u64 = 32;
const BITMAP_ENTRIES: u64 = 510 * ENTRIES_PER_WORD;

/// The bits of a word that are the high ones of its entries.
const HIGH_BITS: u64 = 0x5555_5555_5555_5555;

struct IndexEntry {
    bitmap: u64,
    nr_free: u64,
    none_free_before: u64,
}

impl IndexEntry {
    fn of(bytes: &[u8]) -> Self {
        Self {
            bitmap: u64_at(bytes, 0),
            nr_free: u32_at(bytes, 8).into(),
            none_free_before: u32_at(bytes, 12).into(),
        }
    }
}

/// A space map whose blocks were counted.
pub(super) struct SpaceMap {
    nr_blocks: u64,
    nr_allocated: u64,
    index: Vec<IndexEntry>,
    /// The counts that do not fit the bitmaps.
    large: Vec<(u64, u32)>,
}

impl SpaceMap {
    /// The metadata device's own.
    pub(super) fn metadata<B: Blocks + ?Sized>(
        counts: &mut Counts<'_, B>,
        root: [u64; 4],
    ) -> Result<Self> {
        let [nr_blocks, nr_allocated, index_block, ref_counts] = root;
        if nr_blocks == 0 || nr_blocks > counts.blocks().nr_blocks() {
            return Err(format!("{nr_blocks} blocks"));
        }
        let nr_bitmaps = nr_blocks.div_ceil(BITMAP_ENTRIES);
        if nr_bitmaps > INDEX_ENTRIES {
            return Err(format!("{nr_bitmaps} bitmaps"));
        }
        if !counts.add_reference(index_block, Kind::Index)? {
            return Err(format!("index {index_block} is referenced twice"));
        }
        let data = counts.checked(index_block, INDEX_CSUM_XOR, 8)?;
        let entries = data[HEADER_SIZE..].as_chunks::<16>().0;
        let index = entries
            .iter()
            .take(nr_bitmaps as usize)
            .map(|bytes| IndexEntry::of(bytes))
            .collect();
        Self::new(counts, nr_blocks, nr_allocated, index, ref_counts)
    }

    /// The data device's.
    pub(super) fn data<B: Blocks + ?Sized>(
        counts: &mut Counts<'_, B>,
        root: [u64; 4],
    ) -> Result<Self> {
        let [nr_blocks, nr_allocated, index_root, ref_counts] = root;
        let mut index = Vec::new();
        Tree::new(Kind::DataIndex, 16).walk(counts, index_root, &mut |_, _, i, value| {
            if i != index.len() as u64 {
                return Err(format!("index entry {i} after {} others", index.len()));
            }
            index.push(IndexEntry::of(value));
            Ok(())
        })?;
        Self::new(counts, nr_blocks, nr_allocated, index, ref_counts)
    }

    fn new<B: Blocks + ?Sized>(
        counts: &mut Counts<'_, B>,
        nr_blocks: u64,
        nr_allocated: u64,
        index: Vec<IndexEntry>,
        ref_counts: u64,
    ) -> Result<Self> {
        if nr_blocks.div_ceil(BITMAP_ENTRIES) != index.len() as u64 {
            return Err(format!("{} bitmaps for {nr_blocks} blocks", index.len()));
        }
        for entry in &index {
            if !counts.add_reference(entry.bitmap, Kind::Bitmap)? {
                return Err(format!("bitmap {} is referenced twice", entry.bitmap));
            }
            counts.checked(entry.bitmap, BITMAP_CSUM_XOR, 8)?;
        }
        let mut large = Vec::new();
        Tree::new(Kind::RefCounts, 4).walk(counts, ref_counts, &mut |_, _, block, value| {
            large.push((block, u32_at(value, 0)));
            Ok(())
        })?;
        Ok(Self {
            nr_blocks,
            nr_allocated,
            index,
            large,
        })
    }

    pub(super) fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }

    /// Compares all counts with those that were found.
    pub(super) fn compare<B: Blocks + ?Sized>(&mut self, blocks: &B, found: &[u32]) -> Result {
        let mut large = std::mem::take(&mut self.large).into_iter();
        let mut nr_allocated = 0;
        let chunks = found.chunks(BITMAP_ENTRIES as usize);
        for ((entry, found), number) in self.index.iter().zip(chunks).zip(0..) {
            let first = nr_allocated;
            let bitmap = &blocks.block(entry.bitmap)[HEADER_SIZE..];
            let start: u64 = BITMAP_ENTRIES * number;
            let mut none_free_before = None;
            for (i, word) in bitmap.as_chunks::<8>().0.iter().enumerate() {
                let word = u64::from_le_bytes(*word);
                let begin = (i * ENTRIES_PER_WORD as usize).min(found.len());
                let end = (begin + ENTRIES_PER_WORD as usize).min(found.len());
                let counts = &found[begin..end];
                let mut wanted = 0;
                for (n, count) in counts.iter().enumerate() {
                    let block = start + (begin + n) as u64;
                    if *count == 0 {
                        none_free_before.get_or_insert((begin + n) as u64);
                        continue;
                    }
                    let value = u64::from((*count).min(3));
                    wanted |= ((value >> 1) | ((value & 1) << 1)) << (2 * n);
                    if *count > 2 && large.next() != Some((block, *count)) {
                        return Err(format!(
                            "block {block} has {count} references, the tree of counts another number"
                        ));
                    }
                }
                nr_allocated += (((wanted >> 1) | wanted) & HIGH_BITS).count_ones() as u64;
                if word != wanted {
                    let n = u64::from((word ^ wanted).trailing_zeros() / 2);
                    let value = (word >> (2 * n)) & 3;
                    let block = start + i as u64 * ENTRIES_PER_WORD + n;
                    return Err(format!(
                        "block {block} has {:?} references, the bitmap says {}",
                        counts.get(n as usize),
                        ((value & 1) << 1) | (value >> 1)
                    ));
                }
            }
            let nr_free = found.len() as u64 - (nr_allocated - first);
            let beyond = BITMAP_ENTRIES - found.len() as u64;
            if entry.nr_free != nr_free && entry.nr_free != nr_free + beyond {
                return Err(format!(
                    "bitmap {} has {nr_free} free entries, the index says {}",
                    entry.bitmap, entry.nr_free
                ));
            }
            if none_free_before.is_some_and(|free| free < entry.none_free_before) {
                return Err(format!(
                    "bitmap {}: entry {none_free_before:?} is free, the index says from {}",
                    entry.bitmap, entry.none_free_before
                ));
            }
        }
        if let Some((block, count)) = large.next() {
            return Err(format!(
                "block {block} has not the {count} references that the tree of counts says"
            ));
        }
        if nr_allocated != self.nr_allocated {
            return Err(format!(
                "{nr_allocated} blocks are in use, the root says {}",
                self.nr_allocated
            ));
        }
        Ok(())
    }
}
