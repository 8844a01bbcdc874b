// SPDX-License-Identifier: GPL-2.0

//! Edits: what is made wrong with an image.
//!
//! Checksums and block numbers are put right afterwards, so that the edits are seen, but for a few that are left wrong.

use crate::{
    image::{
        get,
        set,
        Image,
        Kind, //
    },
    input::Record,
};

/// The fields of a node: offset and width.
const NODE_FIELDS: [(usize, usize); 6] = [(4, 4), (8, 8), (16, 4), (20, 4), (24, 4), (28, 4)];

/// The fields of the superblock and of the roots of space maps in it.
const SUPERBLOCK_FIELDS: [(usize, usize); 24] = [
    (4, 4),
    (8, 8),
    (32, 8),
    (40, 4),
    (44, 4),
    (48, 8),
    (56, 8),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 8),
    (192, 8),
    (200, 8),
    (208, 8),
    (216, 8),
    (320, 8),
    (328, 8),
    (336, 4),
    (340, 4),
    (344, 8),
    (352, 4),
    (356, 4),
    (360, 4),
    (16, 8),
];

const NODE_HEADER: usize = 32;

/// How many kinds of edits there are.
pub const KINDS: u8 = 18;

/// Makes all edits, and puts checksums right.
pub fn apply(image: &mut Image, edits: &[Record]) {
    let mut unsealed = Vec::new();
    for edit in edits {
        let touched = apply_one(image, edit);
        // One in sixteen keeps its wrong checksum.
        if edit.kind & 0x70 == 0x70 {
            unsealed.push(touched);
        }
    }
    for block in image.changed() {
        if !unsealed.contains(&block) {
            image.seal(block);
        }
    }
}

/// What an edit does, in words, for reports.
pub fn describe(image: &Image, edit: &Record) -> String {
    const NAMES: [&str; KINDS as usize] = [
        "node header",
        "key",
        "value",
        "copy of a block",
        "swap of entries",
        "loop",
        "shared node",
        "metadata count",
        "data count",
        "superblock field",
        "index of metadata",
        "bytes",
        "equal keys",
        "keys reversed",
        "zeroed block",
        "leaf and internal changed",
        "entries lost",
        "value size",
    ];
    let kind = edit.kind % KINDS;
    let block = node(image, edit);
    format!(
        "{} ({block} {:#x} {:#x})",
        NAMES[kind as usize], edit.a, edit.c
    )
}

/// A number that is likely to matter: `c`'s upper byte tells what its rest is.
fn value(image: &Image, old: u64, c: u64) -> u64 {
    let rest = c & 0x00ff_ffff_ffff_ffff;
    let small = c & 0xff;
    match (c >> 56) % 12 {
        0 => small,
        1 => old.wrapping_add(small),
        2 => old.wrapping_sub(small),
        3 => pick(image.base().used(), rest),
        4 => pick(image.base().nodes(), rest),
        5 => image.base().nr_blocks().wrapping_add(small).wrapping_sub(4),
        6 => u64::MAX - small,
        7 => 1 << (small % 64),
        8 => old ^ (1 << (small % 64)),
        9 => image.base().nr_data.wrapping_add(small).wrapping_sub(4),
        // A mapping: block and time.
        10 => (image.base().nr_data.wrapping_add(small).wrapping_sub(128)) << 24,
        _ => rest,
    }
}

fn pick(blocks: &[u64], n: u64) -> u64 {
    match blocks.len() {
        0 => 0,
        len => blocks[(n % len as u64) as usize],
    }
}

fn node(image: &Image, edit: &Record) -> u64 {
    pick(image.base().nodes(), u64::from(edit.b))
}

/// Where a node's entries are, as it says itself: how many there are, where values begin and how large they are.
struct Layout {
    len: usize,
    values: usize,
    size: usize,
}

impl Layout {
    fn of(image: &Image, block: u64) -> Self {
        let data = image.block(block);
        let max = get(data, 20, 4).min(500) as usize;
        Self {
            len: get(data, 16, 4).clamp(1, 500) as usize,
            values: NODE_HEADER + max * 8,
            size: get(data, 24, 4).min(500) as usize,
        }
    }

    /// An entry: `a` of them from the beginning, or for the upper half of numbers, from the end.
    fn entry(&self, a: u8) -> usize {
        match a {
            0..=127 => usize::from(a) % self.len,
            _ => self.len - 1 - (255 - usize::from(a)) % self.len,
        }
    }

    fn key(entry: usize) -> usize {
        NODE_HEADER + entry * 8
    }

    fn value(&self, entry: usize) -> usize {
        self.values + entry * self.size
    }
}

/// Makes one edit, and tells which block it is of.
fn apply_one(image: &mut Image, edit: &Record) -> u64 {
    let node = node(image, edit);
    let layout = Layout::of(image, node);
    let entry = layout.entry(edit.a);
    match edit.kind % KINDS {
        0 => {
            let (offset, width) = NODE_FIELDS[usize::from(edit.a) % NODE_FIELDS.len()];
            return set_value(image, node, offset, width, edit.c);
        }
        1 => return set_value(image, node, Layout::key(entry), 8, edit.c),
        2 => {
            // Values of 4, 8, 16 and 24 bytes occur; the number goes to any of their words.
            let words = (layout.size / 8).max(1);
            let offset = layout.value(entry) + (edit.c >> 48) as usize % words * 8;
            return set_value(image, node, offset, layout.size.min(8), edit.c);
        }
        3 => {
            let to = pick(image.base().used(), u64::from(edit.b));
            let from = pick(image.base().used(), edit.c);
            let (kind, mut data) = (image.kind(from), *image.block(from));
            if kind != Kind::Other && edit.a & 3 != 0 {
                // All four kinds have it there.
                set(&mut data, 8, 8, to);
            }
            image.write(to, kind, &data);
            return to;
        }
        4 => {
            let other = (edit.c % layout.len as u64) as usize;
            let data = image.block_mut(node);
            let size = if edit.c >> 63 == 0 {
                layout.size.min(8)
            } else {
                8
            };
            let at = |i: usize| match edit.c >> 63 {
                0 => layout.value(i),
                _ => Layout::key(i),
            };
            let (x, y) = (get(data, at(entry), size), get(data, at(other), size));
            set(data, at(entry), size, y);
            set(data, at(other), size, x);
        }
        5 => {
            // To itself, or wherever nodes are.
            let to = match edit.c & 1 {
                0 => node,
                _ => pick(image.base().nodes(), edit.c >> 1),
            };
            let offset = layout.value(entry);
            set(image.block_mut(node), offset, 8, to);
        }
        6 => {
            let from = pick(image.base().nodes(), edit.c);
            let other = Layout::of(image, from);
            let to = get(
                image.block(from),
                other.value((edit.c >> 16) as usize % other.len),
                8,
            );
            let offset = layout.value(entry);
            set(image.block_mut(node), offset, 8, to);
        }
        7 => {
            let index = get(image.block(0), 208, 8);
            let bitmap = get(image.block(index), 16, 8);
            let block = pick(image.base().used(), u64::from(edit.b));
            return set_count(image, bitmap, block, edit.c);
        }
        8 => {
            // The first leaf of the data space map's index.
            let mut leaf = get(image.block(0), 80, 8);
            for _ in 0..3 {
                if get(image.block(leaf), 4, 4) == 1 {
                    leaf = get(image.block(leaf), Layout::of(image, leaf).values, 8);
                }
            }
            let index = Layout::of(image, leaf);
            let bitmap = get(
                image.block(leaf),
                index.value(usize::from(edit.a) % index.len),
                8,
            );
            return set_count(image, bitmap, u64::from(edit.b), edit.c);
        }
        9 => {
            let held = get(image.block(0), 56, 8);
            let block = match edit.b & 3 {
                3 if held != 0 => held,
                _ => 0,
            };
            let (offset, width) = SUPERBLOCK_FIELDS[usize::from(edit.a) % SUPERBLOCK_FIELDS.len()];
            return set_value(image, block, offset, width, edit.c);
        }
        10 => {
            let index = get(image.block(0), 208, 8);
            let offset = [16, 24, 28, 32][usize::from(edit.a) % 4];
            let width = if offset % 16 == 0 { 8 } else { 4 };
            return set_value(image, index, offset, width, edit.c);
        }
        11 => {
            let block = pick(image.base().used(), u64::from(edit.b));
            let offset = (edit.c >> 40) as usize & 0xfff;
            set(
                image.block_mut(block),
                offset,
                usize::from(edit.a & 7) + 1,
                edit.c,
            );
            return block;
        }
        12 => {
            let key = get(image.block(node), Layout::key(entry), 8);
            let next = (entry + 1) % layout.len;
            set(image.block_mut(node), Layout::key(next), 8, key);
        }
        13 => {
            let data = image.block_mut(node);
            for i in 0..layout.len / 2 {
                let j = layout.len - 1 - i;
                let (x, y) = (get(data, Layout::key(i), 8), get(data, Layout::key(j), 8));
                set(data, Layout::key(i), 8, y);
                set(data, Layout::key(j), 8, x);
            }
        }
        14 => {
            let from = 16 * (usize::from(edit.a) & 1);
            image.block_mut(node)[from..].fill((edit.c & 0xff) as u8);
        }
        15 => {
            let data = image.block_mut(node);
            let flags = get(data, 4, 4);
            set(data, 4, 4, flags ^ 3);
        }
        16 => {
            let len = edit.c % (layout.len as u64 + 1);
            set(image.block_mut(node), 16, 4, len);
        }
        _ => {
            // Sizes that lie, and space for entries that fits to them.
            let size = [1, 4, 8, 16, 24, 12, 128, 4000][usize::from(edit.a) % 8];
            let max = match edit.c & 3 {
                0 => get(image.block(node), 20, 4),
                _ => (4064 / (8 + size)) / 3 * 3,
            };
            let data = image.block_mut(node);
            set(data, 24, 4, size);
            set(data, 20, 4, max);
            if edit.c & 4 != 0 {
                let len = get(data, 16, 4).min(max);
                set(data, 16, 4, len);
            }
        }
    }
    node
}

fn set_value(image: &mut Image, block: u64, offset: usize, width: usize, c: u64) -> u64 {
    let old = get(image.block(block), offset, width);
    let new = value(image, old, c);
    set(image.block_mut(block), offset, width, new);
    block
}

/// Changes an entry of a bitmap; the first bit is the upper one.
fn set_count(image: &mut Image, bitmap: u64, entry: u64, count: u64) -> u64 {
    let entry = entry % (510 * 32);
    let offset = 16 + (entry / 4) as usize;
    let shift = entry % 4 * 2;
    let bits = ((count & 2) >> 1 | (count & 1) << 1) << shift;
    let data = image.block_mut(bitmap);
    let byte = get(data, offset, 1) & !(3 << shift) | bits;
    set(data, offset, 1, byte);
    bitmap
}
