// SPDX-License-Identifier: GPL-2.0

//! The metadata space map's index: a single block.
//!
//! ```text
//! offset  size
//!      0     4  checksum, mixed with 160478
//!      4     4  not used
//!      8     8  the block that the index lives in
//!     16  4080  255 index entries
//! ```

use zerocopy::{
    byteorder::little_endian::{
        U32,
        U64, //
    },
    transmute_mut, transmute_ref,
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

use super::{
    index::{
        DiskEntry,
        Entry,
        Index, //
    },
    nr_bitmaps,
};
use crate::{
    block::{
        check_checksum,
        check_location,
        seal_checksum,
        BlockData,
        BlockNr,
        Validator, //
    },
    block_manager::{
        BlockManager,
        Guard,
        Reader, //
    },
    error::{
        Corruption,
        Error,
        Result, //
    },
    platform::{
        TryVec,
        Vec, //
    },
    transaction::Transaction,
};

/// The number of entries that a block has room for.
pub(crate) const MAX_ENTRIES: usize = 255;

const CHECKSUM_XOR: u32 = 160_478;

/// Checks and seals index blocks.
pub(crate) static VALIDATOR: Validator = Validator {
    name: "index",
    check: |data, block| {
        check_location(block, IndexBlock::of(data).block.get())?;
        check_checksum(data, block, CHECKSUM_XOR)
    },
    prepare: |data, block| {
        IndexBlock::of_mut(data).block = block.into();
        seal_checksum(data, CHECKSUM_XOR);
    },
};

/// The content of an index block.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct IndexBlock {
    checksum: U32,
    not_used: U32,
    block: U64,
    entries: [DiskEntry; MAX_ENTRIES],
}

impl IndexBlock {
    fn of(data: &BlockData) -> &Self {
        transmute_ref!(data)
    }

    fn of_mut(data: &mut BlockData) -> &mut Self {
        transmute_mut!(data)
    }
}

/// An index in a block, which is kept in memory and written on commit.
pub(crate) struct BlockIndex {
    root: BlockNr,
    entries: Vec<Entry>,
    dirty: bool,
}

impl BlockIndex {
    /// Makes an empty index.
    pub(crate) fn create<'b, T: Transaction<'b>>(tx: &mut T) -> Result<Self> {
        let root = tx.new_block(&VALIDATOR)?.location();
        Ok(Self {
            root,
            entries: Vec::try_with_room(MAX_ENTRIES)?,
            dirty: true,
        })
    }

    /// Reads the index of a space map with `nr_blocks` blocks, which contains its own bitmaps.
    pub(crate) fn open<B: BlockManager>(bm: &B, root: BlockNr, nr_blocks: BlockNr) -> Result<Self> {
        let guard = bm.read(root, &VALIDATOR)?;
        let disk = &IndexBlock::of(&guard).entries;
        let n = usize::try_from(nr_bitmaps(nr_blocks)).unwrap_or(usize::MAX);
        let disk = disk
            .get(..n)
            .ok_or(Error::Corrupt(root, Corruption::SpaceMapIndex))?;

        let mut entries = Vec::try_with_room(MAX_ENTRIES)?;
        for entry in disk {
            entries.try_push(Entry::parse(entry, root, nr_blocks)?)?;
        }
        Ok(Self {
            root,
            entries,
            dirty: false,
        })
    }

    /// All entries.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether the block must be written.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Makes the block writable, which changes entries as soon as the new counts are applied.
    pub(crate) fn shadow<'b, T: Transaction<'b>>(&mut self, tx: &mut T) -> Result {
        self.root = tx.shadow(self.root, &VALIDATOR)?.guard.location();
        Ok(())
    }

    /// Writes the block, which [`shadow`](Self::shadow) made writable.
    pub(crate) fn write<B: BlockManager>(&mut self, bm: &B) -> Result {
        let mut guard = bm.write(self.root, &VALIDATOR)?;
        let disk = &mut IndexBlock::of_mut(&mut guard).entries;
        for (i, slot) in disk.iter_mut().enumerate() {
            *slot = self
                .entries
                .get(i)
                .map_or(DiskEntry::default(), |e| e.to_disk());
        }
        self.dirty = false;
        Ok(())
    }

    fn entry(&self, i: u64) -> Result<Entry> {
        usize::try_from(i)
            .ok()
            .and_then(|i| self.entries.get(i).copied())
            .ok_or(Error::Corrupt(self.root, Corruption::SpaceMapIndex))
    }
}

impl Index for BlockIndex {
    const MAX_ENTRIES: u64 = MAX_ENTRIES as u64;

    fn root(&self) -> BlockNr {
        self.root
    }

    fn load<'b, R: Reader<'b>>(&self, _: R, i: u64) -> Result<Entry> {
        self.entry(i)
    }

    fn load_to_change<'b, T: Transaction<'b>>(&mut self, _: &mut T, i: u64) -> Result<Entry> {
        self.entry(i)
    }

    fn save<'b, T: Transaction<'b>>(&mut self, _: &mut T, i: u64, entry: Entry) -> Result {
        self.dirty = true;
        if i == self.entries.len() as u64 {
            return self.entries.try_push(entry);
        }
        let slot = usize::try_from(i)
            .ok()
            .and_then(|i| self.entries.get_mut(i))
            .ok_or(Error::Invalid)?;
        *slot = entry;
        Ok(())
    }
}
