// SPDX-License-Identifier: GPL-2.0

//! Trees.

use persistent_data::block::{
    BlockData,
    BLOCK_SIZE, //
};

use super::{
    counts::{
        Counts,
        Kind, //
    },
    u32_at,
    u64_at,
    Result, //
};
use crate::image::Blocks;

pub(super) const CSUM_XOR: u32 = 121_107;
const INTERNAL: u32 = 1;
const LEAF: u32 = 2;
const HEADER_SIZE: usize = 32;

/// No tree of a device is deeper.
const MAX_DEPTH: usize = 16;

/// What gets each entry: whether its leaf is seen for the first time, its key and its value.
pub(super) type Each<'f, 'a, B> = &'f mut dyn FnMut(&mut Counts<'a, B>, bool, u64, &[u8]) -> Result;

/// A tree of one level, to be walked.
pub(super) struct Tree {
    kind: Kind,
    value_size: usize,
    /// Whether references count: not where the parent was seen before.
    pub(super) is_counting: bool,
    /// How deep the leaves are, once it is known.
    leaf_depth: Option<usize>,
    /// The last key of a leaf.
    last: Option<u64>,
}

struct Node<'a> {
    data: &'a BlockData,
    is_leaf: bool,
    len: usize,
    max: usize,
    value_size: usize,
}

impl<'a> Node<'a> {
    fn key(&self, i: usize) -> u64 {
        u64_at(self.data, HEADER_SIZE + 8 * i)
    }

    fn value(&self, i: usize) -> &'a [u8] {
        let start = HEADER_SIZE + 8 * self.max + self.value_size * i;
        self.data
            .get(start..start + self.value_size)
            .unwrap_or_default()
    }
}

impl Tree {
    pub(super) fn new(kind: Kind, value_size: usize) -> Self {
        Self {
            kind,
            value_size,
            is_counting: true,
            leaf_depth: None,
            last: None,
        }
    }

    /// Visits all entries in their order.
    pub(super) fn walk<'a, B: Blocks + ?Sized>(
        &mut self,
        counts: &mut Counts<'a, B>,
        root: u64,
        each: Each<'_, 'a, B>,
    ) -> Result {
        let is_counting = self.is_counting;
        self.walk_node(counts, root, is_counting, 0, 0..=u64::MAX, each)
    }

    fn walk_node<'a, B: Blocks + ?Sized>(
        &mut self,
        counts: &mut Counts<'a, B>,
        block: u64,
        is_counting: bool,
        depth: usize,
        keys: std::ops::RangeInclusive<u64>,
        each: Each<'_, 'a, B>,
    ) -> Result {
        if depth > MAX_DEPTH {
            return Err(format!("block {block}: the tree is too deep"));
        }
        let is_first = is_counting && counts.add_reference(block, self.kind)?;
        let is_shareable = matches!(self.kind, Kind::Details | Kind::TopLevel | Kind::Mappings);
        if !is_first && !is_shareable {
            return Err(format!("block {block} is referenced twice"));
        }
        let node = self.node(counts, block, is_first, depth)?;

        for i in 0..node.len {
            let key = node.key(i);
            if i > 0 && node.key(i - 1) >= key {
                return Err(format!("block {block}: keys out of order"));
            }
            if !keys.contains(&key) {
                return Err(format!("block {block}: key {key} is not within {keys:?}"));
            }
        }
        if node.is_leaf {
            if *self.leaf_depth.get_or_insert(depth) != depth {
                return Err(format!("block {block}: leaves at several depths"));
            }
            for i in 0..node.len {
                let key = node.key(i);
                if self.last.is_some_and(|last| last >= key) {
                    return Err(format!("block {block}: key {key} comes late"));
                }
                self.last = Some(key);
                each(counts, is_first, key, node.value(i))?;
            }
            return Ok(());
        }
        for i in 0..node.len {
            let end = match i + 1 {
                next if next < node.len => node.key(next) - 1,
                _ => *keys.end(),
            };
            let child = u64_at(node.value(i), 0);
            let keys = node.key(i)..=end;
            self.walk_node(counts, child, is_first, depth + 1, keys, each)?;
        }
        Ok(())
    }

    fn node<'a, B: Blocks + ?Sized>(
        &self,
        counts: &Counts<'a, B>,
        block: u64,
        is_first: bool,
        depth: usize,
    ) -> Result<Node<'a>> {
        // What was seen before was checked then.
        let data = match is_first {
            true => counts.checked(block, CSUM_XOR, 8)?,
            false => counts.block(block),
        };
        let is_leaf = match u32_at(data, 4) {
            INTERNAL => false,
            LEAF => true,
            flags => return Err(format!("block {block}: flags {flags:#x}")),
        };
        let node = Node {
            data,
            is_leaf,
            len: u32_at(data, 16) as usize,
            max: u32_at(data, 20) as usize,
            value_size: u32_at(data, 24) as usize,
        };
        let wanted = match is_leaf {
            true => self.value_size,
            false => 8,
        };
        if node.value_size != wanted {
            return Err(format!(
                "block {block}: values of {} bytes",
                node.value_size
            ));
        }
        if node.max > BLOCK_SIZE
            || node.max * (node.value_size + 8) > BLOCK_SIZE - HEADER_SIZE
            || !node.max.is_multiple_of(3)
        {
            return Err(format!("block {block}: room for {} entries", node.max));
        }
        let fewest = match (depth, is_leaf) {
            (0, true) => 0,
            (0, false) => 1,
            _ => (node.max / 3).max(1),
        };
        if node.len > node.max || node.len < fewest {
            return Err(format!(
                "block {block}: {} entries, at least {fewest} and at most {} wanted",
                node.len, node.max
            ));
        }
        Ok(node)
    }
}
