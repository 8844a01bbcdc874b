// SPDX-License-Identifier: GPL-2.0

//! The blocks that hold an array's values.

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

use crate::{
    block::{
        self,
        BlockData,
        BlockNr,
        Validator,
        BLOCK_SIZE, //
    },
    btree::Value,
    error::{
        Corruption,
        Error,
        Result, //
    },
};

const CSUM_XOR: u32 = 595846735;
const HEADER_SIZE: usize = size_of::<Header>();
const _: () = assert!(HEADER_SIZE == 24);

/// Checks and seals the blocks of all arrays.
pub static VALIDATOR: Validator = Validator {
    name: "array block",
    check,
    prepare,
};

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    csum: U32,
    max_entries: U32,
    nr_entries: U32,
    value_size: U32,
    block: U64,
}

/// How many values fit a block.
pub(super) const fn max_entries(value_size: usize) -> usize {
    (BLOCK_SIZE - HEADER_SIZE) / value_size
}

impl Header {
    /// The number of values and their size, which are known to fit the block.
    fn shape(&self) -> Option<(usize, usize)> {
        let len = self.nr_entries.get() as usize;
        let max = self.max_entries.get() as usize;
        let value_size = self.value_size.get() as usize;
        let is_valid = value_size > 0 && max == max_entries(value_size) && len <= max;
        is_valid.then_some((len, value_size))
    }
}

/// The values in block `block`.
pub(super) fn values<V: Value>(data: &BlockData, block: BlockNr) -> Result<&[V]> {
    find_values(data).ok_or(Error::Corrupt(block, Corruption::ArrayBlock))
}

fn find_values<V: Value>(data: &BlockData) -> Option<&[V]> {
    let (header, rest) = Header::ref_from_prefix(data).ok()?;
    let (len, value_size) = header.shape()?;
    if value_size != size_of::<V>() {
        return None;
    }
    Some(<[V]>::ref_from_prefix_with_elems(rest, len).ok()?.0)
}

/// The values in a block, to be changed.
pub(super) struct ValuesMut<'a, V> {
    block: BlockNr,
    header: &'a mut Header,
    len: usize,
    /// All values that there is space for.
    values: &'a mut [V],
}

impl<'a, V: Value> ValuesMut<'a, V> {
    /// The values in block `block`.
    pub(super) fn new(data: &'a mut BlockData, block: BlockNr) -> Result<Self> {
        let len = values::<V>(data, block)?.len();
        Self::with_len(data, block, len)
    }

    /// Makes a block without values.
    pub(super) fn init(data: &'a mut BlockData, block: BlockNr) -> Result<Self> {
        let values = Self::with_len(data, block, 0)?;
        values.header.max_entries.set(values.values.len() as u32);
        values.header.nr_entries.set(0);
        values.header.value_size.set(size_of::<V>() as u32);
        values.header.block.set(block);
        Ok(values)
    }

    fn with_len(data: &'a mut BlockData, block: BlockNr, len: usize) -> Result<Self> {
        let corrupt = Error::Corrupt(block, Corruption::ArrayBlock);
        let (header, rest) = Header::mut_from_prefix(data).map_err(|_| corrupt)?;
        let max = max_entries(size_of::<V>());
        let (values, _) = <[V]>::mut_from_prefix_with_elems(rest, max).map_err(|_| corrupt)?;
        Ok(Self {
            block,
            header,
            len,
            values,
        })
    }

    /// The values.
    pub(super) fn get_mut(&mut self) -> &mut [V] {
        self.values.get_mut(..self.len).unwrap_or_default()
    }

    /// Appends a value.
    pub(super) fn push(&mut self, value: V) -> Result {
        match self.values.get_mut(self.len) {
            Some(slot) => {
                *slot = value;
                self.len += 1;
                self.header.nr_entries.set(self.len as u32);
                Ok(())
            }
            None => Err(Error::Corrupt(self.block, Corruption::ArrayBlock)),
        }
    }

    /// Drops all but the first `len` values.
    pub(super) fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.len = len;
            self.header.nr_entries.set(len as u32);
        }
    }
}

fn check(data: &BlockData, block: BlockNr) -> Result {
    let corrupt = Error::Corrupt(block, Corruption::ArrayBlock);
    let (header, _) = Header::ref_from_prefix(data).map_err(|_| corrupt)?;
    block::check_location(block, header.block.get())?;
    block::check_checksum(data, block, CSUM_XOR)?;
    header.shape().map(drop).ok_or(corrupt)
}

fn prepare(data: &mut BlockData, block: BlockNr) {
    if let Ok((header, _)) = Header::mut_from_prefix(data) {
        header.block.set(block);
    }
    block::seal_checksum(data, CSUM_XOR);
}
