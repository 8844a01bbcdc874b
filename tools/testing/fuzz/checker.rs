// SPDX-License-Identifier: GPL-2.0

//! Whether an image is all right: every reference is counted, and compared with what its space maps say.
//!
//! It shares no code with the libraries, but for checksums.

use std::ops::RangeInclusive;

use persistent_data::block::BlockData;

use crate::image::{
    get,
    Image,
    Kind, //
};

/// The entries of a bitmap.
const BITMAP: u64 = 510 * 32;

type Result<T = ()> = std::result::Result<T, String>;

/// How much is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// All references to metadata blocks.
    Metadata,
    /// Those to data blocks as well, and checksums.
    All,
}

/// What an image holds, by numbers of blocks.
pub struct Found {
    /// The references to metadata blocks.
    pub metadata: Vec<u32>,
    /// The references to data blocks by mappings.
    pub data: Vec<u32>,
    /// What the space map says of data blocks.
    pub data_counted: Vec<u32>,
}

struct Walk<'a> {
    image: &'a Image,
    depth: Depth,
    counts: Vec<u32>,
    data: Vec<u32>,
}

/// What to do with a leaf: its keys, and its values of a known size.
type Visit<'v, 'a> = &'v mut dyn FnMut(&mut Walk<'a>, &[[u8; 8]], &[u8]) -> Result;

fn check(good: bool, what: impl FnOnce() -> String) -> Result {
    match good {
        true => Ok(()),
        false => Err(what()),
    }
}

impl<'a> Walk<'a> {
    fn load(&self, block: u64, kind: Kind) -> Result<&'a BlockData> {
        let data = self.image.block(block);
        let good = self.depth == Depth::Metadata || kind.is_right(data);
        check(good && get(data, 8, 8) == block, || {
            format!("block {block} is no {kind:?}")
        })?;
        Ok(data)
    }

    /// Counts a reference; whether it is the first.
    fn refer(&mut self, block: u64) -> Result<bool> {
        let count = self.counts.get_mut(block as usize).filter(|_| block != 0);
        let count = count.ok_or_else(|| format!("a reference to block {block}"))?;
        *count += 1;
        Ok(*count == 1)
    }

    /// Counts references to data blocks.
    fn refer_data(&mut self, values: &[u8]) -> Result {
        if self.depth == Depth::Metadata {
            return Ok(());
        }
        for value in values.as_chunks::<8>().0 {
            let block = u64::from_le_bytes(*value) >> 24;
            match self.data.get_mut(block as usize) {
                Some(count) => *count += 1,
                None => return Err(format!("a mapping to data block {block}")),
            }
        }
        Ok(())
    }

    /// Walks a tree to which there is a reference, unless it was walked before.
    fn tree(&mut self, root: u64, value_size: u64, visit: Visit<'_, 'a>) -> Result {
        self.node(root, value_size, 0..=u64::MAX, true, visit)
            .map(drop)
    }

    fn node(
        &mut self,
        block: u64,
        value_size: u64,
        within: RangeInclusive<u64>,
        is_root: bool,
        visit: Visit<'_, 'a>,
    ) -> Result<Option<u32>> {
        if !self.refer(block)? {
            return Ok(None);
        }
        let data = self.load(block, Kind::Node)?;
        let [flags, len, max, size] = [4, 16, 20, 24].map(|offset| get(data, offset, 4));
        let is_leaf = flags == 2;
        check(is_leaf || flags == 1, || {
            format!("node {block} has flags {flags}")
        })?;
        let wanted = if is_leaf { value_size } else { 8 };
        check(size == wanted, || {
            format!("node {block} has values of {size} bytes")
        })?;
        check(max % 3 == 0 && max * (8 + size) <= 4064, || {
            format!("node {block} has space for {max}")
        })?;
        let min = if is_root {
            u64::from(!is_leaf)
        } else {
            max / 3
        };
        check((min..=max).contains(&len), || {
            format!("node {block} has {len} of {max} entries")
        })?;

        let (len, max, size) = (len as usize, max as usize, size as usize);
        let keys = &data[32..32 + len * 8].as_chunks::<8>().0;
        let values = &data[32 + max * 8..][..len * size];
        let mut last = None;
        for key in keys.iter().map(|key| u64::from_le_bytes(*key)) {
            check(last < Some(key) && within.contains(&key), || {
                format!("key {key} of node {block}")
            })?;
            last = Some(key);
        }
        if is_leaf {
            visit(self, keys, values)?;
            return Ok(Some(1));
        }
        let mut depth = None;
        for (i, value) in values.as_chunks().0.iter().enumerate() {
            let end = match keys.get(i + 1) {
                Some(next) => u64::from_le_bytes(*next) - 1,
                None => *within.end(),
            };
            let within = u64::from_le_bytes(keys[i])..=end;
            let child = self.node(u64::from_le_bytes(*value), value_size, within, false, visit)?;
            let same = depth.is_none() || child.is_none() || depth == child;
            check(same, || format!("depth of node {block}"))?;
            depth = depth.or(child);
        }
        Ok(depth.map(|depth: u32| depth + 1))
    }

    /// Both trees of a superblock.
    fn trees(&mut self, superblock: &BlockData) -> Result {
        self.tree(get(superblock, 320, 8), 8, &mut |walk, _, roots| {
            for root in roots.as_chunks().0 {
                walk.tree(u64::from_le_bytes(*root), 8, &mut |walk, _, values| {
                    walk.refer_data(values)
                })?;
            }
            Ok(())
        })?;
        self.tree(get(superblock, 328, 8), 24, &mut |_, _, _| Ok(()))
    }

    /// The counts that a space map's bitmaps and tree have.
    fn counted(&mut self, bitmaps: &[u64], nr_blocks: u64, tree: u64) -> Result<Vec<u32>> {
        let mut counts = vec![0; nr_blocks as usize];
        self.tree(tree, 4, &mut |_, keys, values| {
            for (key, value) in keys.iter().zip(values.as_chunks().0) {
                let block = u64::from_le_bytes(*key);
                let count = u32::from_le_bytes(*value);
                let slot = counts.get_mut(block as usize).filter(|_| count > 2);
                *slot.ok_or_else(|| format!("count {count} of block {block}"))? = count;
            }
            Ok(())
        })?;
        for (i, bitmap) in (0..).zip(bitmaps) {
            self.refer(*bitmap)?;
            let data = self.load(*bitmap, Kind::Bitmap)?;
            for (word, bytes) in (0..).zip(data[16..].as_chunks().0) {
                let mut bits = u64::from_le_bytes(*bytes);
                let first = i * BITMAP + word * 32;
                if bits == 0 {
                    let end = counts.len().min(first as usize + 32);
                    let none = counts
                        .get(first as usize..end)
                        .is_none_or(|c| c.iter().all(|c| *c == 0));
                    check(none, || {
                        format!("counts near {first} that are in the tree only")
                    })?;
                    continue;
                }
                for block in first..first + 32 {
                    let count = (bits & 1) << 1 | (bits >> 1) & 1;
                    match counts.get_mut(block as usize) {
                        None if count == 0 => {}
                        Some(slot) if (*slot > 2) == (count == 3) => {
                            *slot = (*slot).max(count as u32);
                        }
                        _ => return Err(format!("count of block {block} is {count}")),
                    }
                    bits >>= 2;
                }
            }
        }
        Ok(counts)
    }
}

/// Checks an image.
pub fn examine(image: &Image, depth: Depth) -> Result<Found> {
    let superblock = image.block(0);
    check(Kind::Superblock.is_right(superblock), || {
        "the superblock's checksum".into()
    })?;
    let field = |offset| get(superblock, offset, 8);
    let (nr_data, nr_blocks) = (field(64), field(192));
    check(nr_data < 1 << 24 && nr_blocks < 1 << 20, || {
        "too large to be checked".into()
    })?;
    let mut walk = Walk {
        image,
        depth,
        counts: vec![0; nr_blocks as usize],
        data: vec![0; nr_data as usize],
    };
    walk.counts[0] = 1;
    walk.trees(superblock)?;
    let held = field(56);
    if held != 0 {
        walk.refer(held)?;
        let superblock = walk.load(held, Kind::Superblock)?;
        walk.trees(superblock)?;
    }

    let mut bitmaps = Vec::new();
    walk.tree(field(80), 16, &mut |_, _, entries| {
        bitmaps.extend(entries.as_chunks::<16>().0.iter().map(|entry| {
            let [block @ .., _, _, _, _, _, _, _, _] = entry;
            u64::from_le_bytes(*block)
        }));
        Ok(())
    })?;
    check(bitmaps.len() as u64 == nr_data.div_ceil(BITMAP), || {
        "the number of data bitmaps".into()
    })?;
    let data_counted = walk.counted(&bitmaps, nr_data, field(88))?;
    let in_use = |counts: &[u32]| counts.iter().filter(|count| **count > 0).count() as u64;
    check(in_use(&data_counted) == field(72), || {
        "the number of data blocks in use".into()
    })?;

    let index = field(208);
    walk.refer(index)?;
    let data = walk.load(index, Kind::Index)?;
    let bitmaps: Vec<_> = (0..nr_blocks.div_ceil(BITMAP).min(255))
        .map(|i| get(data, 16 + i as usize * 16, 8))
        .collect();
    let counted = walk.counted(&bitmaps, nr_blocks, field(216))?;
    check(in_use(&counted) == field(200), || {
        "the number of metadata blocks in use".into()
    })?;
    for (block, (used, counted)) in walk.counts.iter().zip(&counted).enumerate() {
        check(used == counted, || {
            format!("block {block} is used {used} times, counted {counted}")
        })?;
    }
    Ok(Found {
        metadata: walk.counts,
        data: walk.data,
        data_counted,
    })
}
