// SPDX-License-Identifier: GPL-2.0

//! Views of the block of one node.
//!
//! [`Node`] is for reading and knows the type of the values; [`NodeMut`] is for changes, for which the
//! size of a value is enough.

use core::ops::{
    DerefMut,
    Range, //
};

use zerocopy::{
    little_endian::{
        U32,
        U64, //
    },
    FromBytes, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

use super::Value;
use crate::{
    block::{
        self,
        BlockData,
        BlockNr,
        Validator,
        BLOCK_SIZE, //
    },
    block_manager::Guard,
    error::{
        Corruption,
        Error,
        Result, //
    },
};

const CSUM_XOR: u32 = 121107;
const INTERNAL: u32 = 1;
const LEAF: u32 = 2;
const KEY_SIZE: usize = 8;
const HEADER_SIZE: usize = size_of::<Header>();
const _: () = assert!(HEADER_SIZE == 32);

/// The size of a value in an internal node: the number of a block.
pub(super) const CHILD_SIZE: usize = 8;

/// Checks and seals nodes of all trees.
pub static VALIDATOR: Validator = Validator {
    name: "btree node",
    check,
    prepare,
};

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    csum: U32,
    flags: U32,
    block: U64,
    nr_entries: U32,
    max_entries: U32,
    value_size: U32,
    unused: U32,
}

/// The number of entries that a new node has space for.
///
/// It is a multiple of three, which suits loops of insertions and removals.
pub(super) const fn max_entries(value_size: usize) -> usize {
    (BLOCK_SIZE - HEADER_SIZE) / (KEY_SIZE + value_size) / 3 * 3
}

/// The fewest entries that any node but the root may have.
pub(super) fn min_entries(max: usize) -> usize {
    max / 3
}

/// What a node's values are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// The blocks of children.
    Internal,
    /// The values of the tree.
    Leaf,
}

/// The header's content, which is known to fit the block.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) kind: Kind,
    pub(super) len: usize,
    pub(super) max: usize,
    pub(super) value_size: usize,
}

impl Shape {
    /// Reads and checks the header of the node in block `block`.
    #[inline]
    pub(super) fn of(data: &BlockData, block: BlockNr) -> Result<Self> {
        match Header::ref_from_prefix(data) {
            Ok((header, _)) => Self::checked(header, block),
            Err(_) => Err(Error::Corrupt(block, Corruption::ValueSize)),
        }
    }

    #[inline]
    fn checked(header: &Header, block: BlockNr) -> Result<Self> {
        Self::from_header(header).map_err(|what| Error::Corrupt(block, what))
    }

    #[inline]
    fn from_header(header: &Header) -> Result<Self, Corruption> {
        let kind = match header.flags.get() {
            INTERNAL => Kind::Internal,
            LEAF => Kind::Leaf,
            _ => return Err(Corruption::NodeFlags),
        };
        let len = header.nr_entries.get() as usize;
        let max = header.max_entries.get() as usize;
        let value_size = header.value_size.get() as usize;

        if value_size == 0 || (kind == Kind::Internal && value_size != CHILD_SIZE) {
            return Err(Corruption::ValueSize);
        }
        const SPACE: usize = BLOCK_SIZE - HEADER_SIZE;
        if value_size > SPACE || max > SPACE || (value_size + KEY_SIZE) * max > SPACE {
            return Err(Corruption::ValueSize);
        }
        if len > max {
            return Err(Corruption::TooManyEntries);
        }
        if len == 0 && kind == Kind::Internal {
            return Err(Corruption::EmptyNode);
        }
        Ok(Self {
            kind,
            len,
            max,
            value_size,
        })
    }
}

/// The keys and values of a node, one of each for each entry.
pub(super) struct Entries<'a, T> {
    pub(super) keys: &'a [U64],
    pub(super) values: &'a [T],
}

impl<'a, T: Value> Entries<'a, T> {
    fn new(data: &'a BlockData, shape: &Shape) -> Option<Self> {
        if shape.value_size != size_of::<T>() {
            return None;
        }
        let (_, rest) = data.split_at_checked(HEADER_SIZE)?;
        let (keys, values) = rest.split_at_checked(shape.max * KEY_SIZE)?;
        Some(Self {
            keys: <[U64]>::ref_from_prefix_with_elems(keys, shape.len).ok()?.0,
            values: <[T]>::ref_from_prefix_with_elems(values, shape.len).ok()?.0,
        })
    }

    /// The index of the last entry whose key is at most `key`.
    #[inline]
    pub(super) fn floor(&self, key: u64) -> Option<usize> {
        floor(self.keys, key)
    }

    /// The index of the first entry whose key is at least `key`, which may be the number of entries.
    #[inline]
    pub(super) fn ceil(&self, key: u64) -> usize {
        ceil(self.keys, key)
    }

    /// The entry at `index`.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<(u64, T)> {
        Some((self.keys.get(index)?.get(), *self.values.get(index)?))
    }

    /// The entries whose keys are within `range`.
    #[inline]
    pub(super) fn within(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &'a T)> {
        let first = match range.is_empty() {
            true => self.keys.len(),
            false => self.ceil(range.start),
        };
        let keys = self.keys.get(first..).unwrap_or_default().iter();
        let values = self.values.get(first..).unwrap_or_default().iter();
        keys.map(|key| key.get())
            .zip(values)
            .take_while(move |(key, _)| *key < range.end)
    }

    /// The value of `key`.
    #[inline]
    pub(super) fn find(&self, key: u64) -> Option<T> {
        let (found, value) = self.get(self.floor(key)?)?;
        (found == key).then_some(value)
    }
}

/// A node, to be read.
pub(super) enum Node<'a, V> {
    Internal(Entries<'a, U64>),
    Leaf(Entries<'a, V>),
}

impl<'a, V: Value> Node<'a, V> {
    /// The node in block `block`, of a tree whose leaves hold values of type `V`.
    #[inline]
    pub(super) fn new(data: &'a BlockData, block: BlockNr) -> Result<Self> {
        let shape = Shape::of(data, block)?;
        match shape.kind {
            Kind::Internal => Entries::new(data, &shape).map(Self::Internal),
            Kind::Leaf => Entries::new(data, &shape).map(Self::Leaf),
        }
        .ok_or(Error::Corrupt(block, Corruption::ValueSize))
    }
}

/// A node, to be changed.
pub(super) struct NodeMut<'a> {
    block: BlockNr,
    shape: Shape,
    header: &'a mut Header,
    /// All keys that there is space for.
    keys: &'a mut [U64],
    /// All values that there is space for.
    values: &'a mut [u8],
}

impl<'a> NodeMut<'a> {
    /// The node in block `block`.
    #[inline]
    pub(super) fn new(data: &'a mut BlockData, block: BlockNr) -> Result<Self> {
        let shape = Shape::of(data, block)?;
        Self::with_shape(data, block, shape)
    }

    /// The node in a block that is held.
    #[inline]
    pub(super) fn of<G: Guard + DerefMut>(guard: &'a mut G) -> Result<Self> {
        let block = guard.location();
        Self::new(guard, block)
    }

    /// Makes an empty node out of a block; an internal one must get an entry before it is used again.
    pub(super) fn init(
        data: &'a mut BlockData,
        block: BlockNr,
        kind: Kind,
        max: usize,
        value_size: usize,
    ) -> Result<Self> {
        let shape = Shape {
            kind,
            len: 0,
            max,
            value_size,
        };
        let node = Self::with_shape(data, block, shape)?;
        node.header.flags.set(match kind {
            Kind::Internal => INTERNAL,
            Kind::Leaf => LEAF,
        });
        node.header.block.set(block);
        node.header.nr_entries.set(0);
        node.header.max_entries.set(max as u32);
        node.header.value_size.set(value_size as u32);
        Ok(node)
    }

    #[inline]
    fn with_shape(data: &'a mut BlockData, block: BlockNr, shape: Shape) -> Result<Self> {
        Self::split(data, block, shape).ok_or(Error::Corrupt(block, Corruption::ValueSize))
    }

    #[inline]
    fn split(data: &'a mut BlockData, block: BlockNr, shape: Shape) -> Option<Self> {
        let (header, rest) = Header::mut_from_prefix(data).ok()?;
        let (keys, rest) = rest.split_at_mut_checked(shape.max * KEY_SIZE)?;
        Some(Self {
            block,
            shape,
            header,
            keys: <[U64]>::mut_from_bytes(keys).ok()?,
            values: rest.get_mut(..shape.max * shape.value_size)?,
        })
    }

    fn corrupt(&self, what: Corruption) -> Error {
        Error::Corrupt(self.block, what)
    }

    /// What the header says.
    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// The number of entries.
    pub(super) fn len(&self) -> usize {
        self.shape.len
    }

    /// The number of entries that there is space for.
    pub(super) fn max(&self) -> usize {
        self.shape.max
    }

    /// The keys of all entries.
    pub(super) fn keys(&self) -> &[U64] {
        self.keys.get(..self.shape.len).unwrap_or_default()
    }

    /// The key of the first entry.
    pub(super) fn first_key(&self) -> Option<u64> {
        self.key(0)
    }

    /// The key of the entry at `index`.
    pub(super) fn key(&self, index: usize) -> Option<u64> {
        self.keys().get(index).map(|k| k.get())
    }

    /// The index of the last entry whose key is at most `key`.
    pub(super) fn floor(&self, key: u64) -> Option<usize> {
        floor(self.keys(), key)
    }

    /// The index of the first entry whose key is at least `key`, which may be the number of entries.
    pub(super) fn ceil(&self, key: u64) -> usize {
        ceil(self.keys(), key)
    }

    /// The index of the entry of `key`, or if there is none, where it should be.
    pub(super) fn find(&self, key: u64) -> Result<usize, usize> {
        let index = self.ceil(key);
        match self.keys().get(index) {
            Some(found) if found.get() == key => Ok(index),
            _ => Err(index),
        }
    }

    /// The values of all entries.
    pub(super) fn values<T: Value>(&self) -> Result<&[T]> {
        if self.shape.value_size != size_of::<T>() {
            return Err(self.corrupt(Corruption::ValueSize));
        }
        <[T]>::ref_from_prefix_with_elems(self.values, self.shape.len)
            .map(|(values, _)| values)
            .map_err(|_| self.corrupt(Corruption::ValueSize))
    }

    /// The block of the child at `index`, or the root that an upper level's leaf names there.
    pub(super) fn child(&self, index: usize) -> Result<BlockNr> {
        match self.values::<U64>()?.get(index) {
            Some(child) => Ok(child.get()),
            None => Err(self.corrupt(Corruption::TooManyEntries)),
        }
    }

    /// Changes what [`child`](Self::child) gives.
    pub(super) fn set_child(&mut self, index: usize, child: BlockNr) -> Result {
        self.set_value(index, &U64::new(child))
    }

    /// Changes the key of an entry. The caller keeps the order.
    pub(super) fn set_key(&mut self, index: usize, key: u64) -> Result {
        let len = self.shape.len;
        match self.keys.get_mut(..len).and_then(|k| k.get_mut(index)) {
            Some(k) => {
                k.set(key);
                Ok(())
            }
            None => Err(self.corrupt(Corruption::TooManyEntries)),
        }
    }

    /// Changes the value of an entry.
    pub(super) fn set_value<T: Value>(&mut self, index: usize, value: &T) -> Result {
        if index >= self.shape.len {
            return Err(self.corrupt(Corruption::TooManyEntries));
        }
        self.put_value(index, value)
    }

    fn put_value<T: Value>(&mut self, index: usize, value: &T) -> Result {
        if self.shape.value_size != size_of::<T>() {
            return Err(self.corrupt(Corruption::ValueSize));
        }
        self.values
            .get_mut(index * size_of::<T>()..)
            .and_then(|values| value.write_to_prefix(values).ok())
            .ok_or(Error::Corrupt(self.block, Corruption::TooManyEntries))
    }

    /// Adds an entry at `index`, before the one that is there now. The caller keeps the order.
    pub(super) fn insert<T: Value>(&mut self, index: usize, key: u64, value: &T) -> Result {
        let len = self.shape.len;
        if index > len || len >= self.shape.max {
            return Err(self.corrupt(Corruption::TooManyEntries));
        }
        self.shift_within(index..len, index + 1)?;
        self.set_len(len + 1);
        self.set_key(index, key)?;
        self.put_value(index, value)
    }

    /// Adds the first `n` of `entries` at `index`, before the one that is there now. The caller keeps the order.
    pub(super) fn insert_run<T: Value>(
        &mut self,
        index: usize,
        n: usize,
        entries: impl Iterator<Item = (u64, T)>,
    ) -> Result {
        let len = self.shape.len;
        if index > len || n > self.shape.max.saturating_sub(len) {
            return Err(self.corrupt(Corruption::TooManyEntries));
        }
        if self.shape.value_size != size_of::<T>() {
            return Err(self.corrupt(Corruption::ValueSize));
        }
        self.shift_within(index..len, index + n)?;
        self.set_len(len + n);
        let values = self.values.chunks_exact_mut(size_of::<T>());
        let slots = self.keys.iter_mut().zip(values).skip(index).take(n);
        for ((key_slot, value_slot), (key, value)) in slots.zip(entries) {
            key_slot.set(key);
            value_slot.copy_from_slice(value.as_bytes());
        }
        Ok(())
    }

    /// Removes entries.
    pub(super) fn remove(&mut self, range: Range<usize>) -> Result {
        let len = self.shape.len;
        if range.start > range.end || range.end > len {
            return Err(self.corrupt(Corruption::TooManyEntries));
        }
        self.shift_within(range.end..len, range.start)?;
        self.set_len(len - (range.end - range.start));
        Ok(())
    }

    /// Appends the first `n` entries of `right` to `left`.
    pub(super) fn shift_left(left: &mut Self, right: &mut NodeMut<'_>, n: usize) -> Result {
        left.check_sibling(right)?;
        let to = left.len();
        if n > right.len() || n > left.max() - to {
            return Err(left.corrupt(Corruption::TooManyEntries));
        }
        left.copy_from(to, right, 0, n)?;
        left.set_len(to + n);
        right.remove(0..n)
    }

    /// Puts the last `n` entries of `left` before those of `right`.
    pub(super) fn shift_right(left: &mut Self, right: &mut NodeMut<'_>, n: usize) -> Result {
        left.check_sibling(right)?;
        let nr_right = right.len();
        if n > left.len() || n > right.max() - nr_right {
            return Err(left.corrupt(Corruption::TooManyEntries));
        }
        let rest = left.len() - n;
        right.shift_within(0..nr_right, n)?;
        right.copy_from(0, left, rest, n)?;
        right.set_len(nr_right + n);
        left.set_len(rest);
        Ok(())
    }

    /// Checks that entries of one may move to the other.
    pub(super) fn check_sibling(&self, other: &NodeMut<'_>) -> Result {
        if self.shape.kind != other.shape.kind {
            return Err(other.corrupt(Corruption::Unbalanced));
        }
        if self.shape.value_size != other.shape.value_size || self.shape.max != other.shape.max {
            return Err(other.corrupt(Corruption::ValueSize));
        }
        Ok(())
    }

    fn set_len(&mut self, len: usize) {
        self.shape.len = len;
        self.header.nr_entries.set(len as u32);
    }

    /// Copies entries to another place within the node.
    fn shift_within(&mut self, from: Range<usize>, to: usize) -> Result {
        let n = from.len();
        if from.start > from.end || from.end > self.shape.max || to > self.shape.max - n {
            return Err(self.corrupt(Corruption::TooManyEntries));
        }
        let size = self.shape.value_size;
        self.keys.copy_within(from.clone(), to);
        self.values
            .copy_within(from.start * size..from.end * size, to * size);
        Ok(())
    }

    /// Copies `n` entries of another node that passed [`check_sibling`](Self::check_sibling).
    fn copy_from(&mut self, to: usize, other: &NodeMut<'_>, from: usize, n: usize) -> Result {
        fn copy<T: Copy>(to: Option<&mut [T]>, from: Option<&[T]>) -> Option<()> {
            let (to, from) = (to?, from?);
            if to.len() != from.len() {
                return None;
            }
            to.copy_from_slice(from);
            Some(())
        }

        let size = self.shape.value_size;
        copy(
            self.keys.get_mut(to..to + n),
            other.keys.get(from..from + n),
        )
        .and_then(|()| {
            copy(
                self.values.get_mut(to * size..(to + n) * size),
                other.values.get(from * size..(from + n) * size),
            )
        })
        .ok_or(self.corrupt(Corruption::TooManyEntries))
    }
}

#[inline]
fn floor(keys: &[U64], key: u64) -> Option<usize> {
    keys.partition_point(|k| k.get() <= key).checked_sub(1)
}

#[inline]
fn ceil(keys: &[U64], key: u64) -> usize {
    keys.partition_point(|k| k.get() < key)
}

fn check(data: &BlockData, block: BlockNr) -> Result {
    let corrupt = |what| Error::Corrupt(block, what);
    let (header, rest) =
        Header::ref_from_prefix(data).map_err(|_| corrupt(Corruption::ValueSize))?;
    block::check_location(block, header.block.get())?;
    block::check_checksum(data, block, CSUM_XOR)?;

    let shape = Shape::checked(header, block)?;
    let (keys, _) = <[U64]>::ref_from_prefix_with_elems(rest, shape.len)
        .map_err(|_| corrupt(Corruption::TooManyEntries))?;
    let pairs = keys.iter().zip(keys.iter().skip(1));
    if pairs.into_iter().any(|(a, b)| a.get() >= b.get()) {
        return Err(corrupt(Corruption::KeyOrder));
    }
    Ok(())
}

fn prepare(data: &mut BlockData, block: BlockNr) {
    if let Ok((header, _)) = Header::mut_from_prefix(data) {
        header.block.set(block);
    }
    block::seal_checksum(data, CSUM_XOR);
}
