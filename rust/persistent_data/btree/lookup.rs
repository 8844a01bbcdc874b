// SPDX-License-Identifier: GPL-2.0

//! Finding entries.

use core::ops::Range;

use zerocopy::little_endian::U64;

use super::{
    node::{
        Entries,
        Node, //
    },
    Tree,
    Value,
    MAX_DEPTH,
    VALIDATOR, //
};
use crate::{
    block::BlockNr,
    block_manager::Reader,
    error::{
        Corruption,
        Error,
        Result, //
    },
};

impl<V: Value, const L: usize> Tree<V, L> {
    /// The value of `keys`, or `None` if there is no such entry.
    pub fn lookup<'b, R: Reader<'b>>(&self, reader: R, keys: &[u64; L]) -> Result<Option<V>> {
        match self.bottom(reader, keys)? {
            Some((root, key)) => find(reader, root, key),
            None => Ok(None),
        }
    }

    /// As [`lookup`](Self::lookup); `near` gets all entries of the leaf where the last one of `keys` is, or would
    /// be, that are within `window`, in ascending order.
    pub fn lookup_near<'b, R: Reader<'b>>(
        &self,
        reader: R,
        keys: &[u64; L],
        window: Range<u64>,
        mut near: impl FnMut(u64, V),
    ) -> Result<Option<V>> {
        let Some((root, key)) = self.bottom(reader, keys)? else {
            return Ok(None);
        };
        with_leaf(reader, root, key, |leaf: &Entries<'_, V>, _| {
            for (key, value) in leaf.within(window) {
                near(key, *value);
            }
            leaf.find(key)
        })
    }

    /// The entry with the smallest key that is at least the last one of `keys`, in the bottom tree that
    /// the others name.
    pub fn lookup_next<'b, R: Reader<'b>>(
        &self,
        reader: R,
        keys: &[u64; L],
    ) -> Result<Option<(u64, V)>> {
        match self.bottom(reader, keys)? {
            Some((root, key)) => find_next(reader, root, key),
            None => Ok(None),
        }
    }

    /// The entries of the bottom tree that all but the last of `keys` name, from the last on and before `end`, in
    /// ascending order, as long as `f` wants more.
    pub fn scan<'b, R: Reader<'b>>(
        &self,
        reader: R,
        keys: &[u64; L],
        end: u64,
        mut f: impl FnMut(u64, V) -> bool,
    ) -> Result {
        let Some((root, mut begin)) = self.bottom(reader, keys)? else {
            return Ok(());
        };
        while begin < end {
            let next = with_leaf(reader, root, begin, |leaf: &Entries<'_, V>, bound| {
                for (key, value) in leaf.within(begin..end) {
                    if !f(key, *value) {
                        return None;
                    }
                }
                bound
            })?;
            // It is greater than where it began, as keys ascend.
            begin = next.unwrap_or(end);
        }
        Ok(())
    }

    /// The lowest key of each level: the lowest in the top tree, the lowest in the tree that belongs to it,
    /// and so on. `None` if one of these trees is empty.
    pub fn lowest_key<'b, R: Reader<'b>>(&self, reader: R) -> Result<Option<[u64; L]>> {
        self.end_key(reader, End::Lowest)
    }

    /// The highest key of each level, as [`lowest_key`](Self::lowest_key).
    pub fn highest_key<'b, R: Reader<'b>>(&self, reader: R) -> Result<Option<[u64; L]>> {
        self.end_key(reader, End::Highest)
    }

    /// The root of the bottom tree that all but the last of `keys` name, and the last.
    fn bottom<'b, R: Reader<'b>>(
        &self,
        reader: R,
        keys: &[u64; L],
    ) -> Result<Option<(BlockNr, u64)>> {
        let Some((&last, upper)) = keys.split_last() else {
            return Err(Error::Invalid);
        };
        let mut root = self.root();
        for &key in upper {
            match find::<U64, R>(reader, root, key)? {
                Some(inner) => root = inner.get(),
                None => return Ok(None),
            }
        }
        Ok(Some((root, last)))
    }

    fn end_key<'b, R: Reader<'b>>(&self, reader: R, end: End) -> Result<Option<[u64; L]>> {
        let mut keys = [0; L];
        let Some((last, upper)) = keys.split_last_mut() else {
            return Err(Error::Invalid);
        };
        let mut root = self.root();
        for found in upper {
            match find_end::<U64, R>(reader, root, end)? {
                Some((key, inner)) => {
                    *found = key;
                    root = inner.get();
                }
                None => return Ok(None),
            }
        }
        match find_end::<V, R>(reader, root, end)? {
            Some((key, _)) => *last = key,
            None => return Ok(None),
        }
        Ok(Some(keys))
    }
}

/// An end of a tree.
#[derive(Clone, Copy)]
enum End {
    Lowest,
    Highest,
}

/// The value of `key` in one level.
fn find<'b, V: Value, R: Reader<'b>>(reader: R, root: BlockNr, key: u64) -> Result<Option<V>> {
    with_leaf(reader, root, key, |leaf: &Entries<'_, V>, _| leaf.find(key))
}

/// What `f` finds in the leaf of one level where `key` is, or would be. It is told what all keys that belong to the
/// leaf are less than, if there are leaves after it.
fn with_leaf<'b, V: Value, R: Reader<'b>, X>(
    reader: R,
    root: BlockNr,
    key: u64,
    f: impl FnOnce(&Entries<'_, V>, Option<u64>) -> Option<X>,
) -> Result<Option<X>> {
    let mut bound = None;
    let mut block = root;
    for _ in 0..MAX_DEPTH {
        let guard = reader.read(block, &VALIDATOR)?;
        match Node::<V>::new(&guard, block)? {
            Node::Leaf(entries) => return Ok(f(&entries, bound)),
            Node::Internal(entries) => {
                let index = entries.floor(key).unwrap_or(0);
                if let Some(next) = entries.keys.get(index + 1) {
                    bound = Some(next.get());
                }
                match entries.values.get(index) {
                    Some(child) => block = child.get(),
                    None => return Err(Error::Corrupt(block, Corruption::EmptyNode)),
                }
            }
        }
    }
    Err(Error::Corrupt(root, Corruption::TooDeep))
}

/// The entry with the smallest key that is at least `key` in one level.
fn find_next<'b, V: Value, R: Reader<'b>>(
    reader: R,
    root: BlockNr,
    key: u64,
) -> Result<Option<(u64, V)>> {
    // The subtree that follows the one the search is in, if there is one.
    let mut next = None;
    let mut block = root;
    for _ in 0..MAX_DEPTH {
        let guard = reader.read(block, &VALIDATOR)?;
        match Node::<V>::new(&guard, block)? {
            Node::Internal(entries) => {
                let index = entries.floor(key).unwrap_or(0);
                if let Some((_, child)) = entries.get(index + 1) {
                    next = Some(child.get());
                }
                match entries.get(index) {
                    Some((_, child)) => block = child.get(),
                    None => return Err(Error::Corrupt(block, Corruption::EmptyNode)),
                }
            }
            Node::Leaf(entries) => {
                if let Some(entry) = entries.get(entries.ceil(key)) {
                    return Ok(Some(entry));
                }
                let Some(next) = next else {
                    return Ok(None);
                };
                drop(guard);
                return match find_end::<V, R>(reader, next, End::Lowest)? {
                    // A caller that goes on from the key that it got must not go in circles.
                    Some((found, _)) if found < key => {
                        Err(Error::Corrupt(next, Corruption::KeyOrder))
                    }
                    Some(entry) => Ok(Some(entry)),
                    None => Err(Error::Corrupt(next, Corruption::EmptyNode)),
                };
            }
        }
    }
    Err(Error::Corrupt(root, Corruption::TooDeep))
}

/// The lowest or highest entry of one level.
fn find_end<'b, V: Value, R: Reader<'b>>(
    reader: R,
    root: BlockNr,
    end: End,
) -> Result<Option<(u64, V)>> {
    let mut block = root;
    for _ in 0..MAX_DEPTH {
        let guard = reader.read(block, &VALIDATOR)?;
        match Node::<V>::new(&guard, block)? {
            Node::Leaf(entries) => {
                let index = match end {
                    End::Lowest => 0,
                    End::Highest => entries.keys.len().saturating_sub(1),
                };
                return Ok(entries.get(index));
            }
            Node::Internal(entries) => {
                let child = match end {
                    End::Lowest => entries.values.first(),
                    End::Highest => entries.values.last(),
                };
                match child {
                    Some(child) => block = child.get(),
                    None => return Err(Error::Corrupt(block, Corruption::EmptyNode)),
                }
            }
        }
    }
    Err(Error::Corrupt(root, Corruption::TooDeep))
}
