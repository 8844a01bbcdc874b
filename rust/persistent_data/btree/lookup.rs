// SPDX-License-Identifier: GPL-2.0

//! Finding entries.

use zerocopy::little_endian::U64;

use super::{
    node::Node,
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
    let mut block = root;
    for _ in 0..MAX_DEPTH {
        let guard = reader.read(block, &VALIDATOR)?;
        match Node::<V>::new(&guard, block)? {
            Node::Leaf(entries) => return Ok(entries.find(key)),
            Node::Internal(entries) => match entries.floor(key).and_then(|i| entries.get(i)) {
                Some((_, child)) => block = child.get(),
                None => return Ok(None),
            },
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
