// SPDX-License-Identifier: GPL-2.0

//! Where a space map's bitmaps are.
//!
//! An index entry takes 16 bytes:
//!
//! ```text
//! offset  size
//!      0     8  the bitmap's block
//!      8     4  the number of entries in the bitmap that are zero
//!     12     4  an entry before which none is zero
//! ```
//!
//! The last two are hints that save look-ups. Entries of the last bitmap beyond the end of the space map are
//! zero. The kernel counts them as free, other tools do not, and after such a map has grown the kernel may
//! have counted below zero. So the number of free entries may be off by up to a bitmap in either direction,
//! and it is counted anew when a bitmap is first changed after its entry was read.

use zerocopy::byteorder::little_endian::{
    U32,
    U64, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

use super::bitmap::{
    self,
    Entries,
    ENTRIES_PER_WORD, //
};
use crate::{
    block::{
        BlockNr, //
    },
    block_manager::Reader,
    btree::{
        Plain,
        Tree, //
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

/// An index entry as it is on disk.
#[derive(
    Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, PartialEq, Eq,
)]
#[repr(C)]
pub(crate) struct DiskEntry {
    bitmap: U64,
    nr_free: U32,
    none_free_before: U32,
}

/// An index entry that makes sense.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    /// The bitmap's block.
    pub(crate) bitmap: BlockNr,
    /// About how many of its entries are zero; zero if none is.
    pub(crate) nr_free: u32,
    /// No entry before this one is zero.
    pub(crate) none_free_before: u32,
    /// Whether the number was counted since the entry was read, and so is exact.
    pub(crate) is_counted: bool,
}

impl Entry {
    /// The entry of a bitmap of zeroes.
    pub(crate) fn of_empty(bitmap: BlockNr) -> Self {
        Self {
            bitmap,
            nr_free: bitmap::NR_ENTRIES,
            none_free_before: 0,
            is_counted: true,
        }
    }

    /// Checks an entry; `index` is the block to blame, and block numbers must be below `limit`.
    pub(crate) fn parse(disk: &DiskEntry, index: BlockNr, limit: BlockNr) -> Result<Self> {
        let bitmap = disk.bitmap.get();
        let nr_free = disk.nr_free.get();
        let none_free_before = disk.none_free_before.get();

        if bitmap >= limit {
            return Err(Error::Corrupt(index, Corruption::Reference));
        }
        let counted_below_zero = nr_free.wrapping_neg() <= bitmap::NR_ENTRIES;
        if !(nr_free <= bitmap::NR_ENTRIES || counted_below_zero)
            || none_free_before > bitmap::NR_ENTRIES
        {
            return Err(Error::Corrupt(index, Corruption::SpaceMapIndex));
        }
        Ok(Self {
            bitmap,
            nr_free: nr_free.min(bitmap::NR_ENTRIES),
            none_free_before,
            is_counted: false,
        })
    }

    /// The entry for the disk.
    pub(crate) fn to_disk(self) -> DiskEntry {
        DiskEntry {
            bitmap: self.bitmap.into(),
            nr_free: self.nr_free.into(),
            none_free_before: self.none_free_before.into(),
        }
    }

    /// Takes notice that entries of the bitmap, in the word that begins at `word`, are not zero any more.
    pub(crate) fn allocated(&mut self, word: u32, entries: Entries) {
        self.nr_free = self.nr_free.saturating_sub(entries.len());
        if let Some(begin) = self.none_free_before.checked_sub(word) {
            if begin < ENTRIES_PER_WORD {
                self.none_free_before = word + entries.first_missing(begin);
            }
        }
    }

    /// Takes notice that entries of the bitmap, in the word that begins at `word`, became zero.
    pub(crate) fn freed(&mut self, word: u32, entries: Entries) {
        if let Some(first) = entries.first() {
            self.nr_free = (self.nr_free + entries.len()).min(bitmap::NR_ENTRIES);
            self.none_free_before = self.none_free_before.min(word + first);
        }
    }
}

/// How to find and change index entries.
pub(crate) trait Index {
    /// The most entries that there may be.
    const MAX_ENTRIES: u64;

    /// The root, as of the last commit of the index.
    fn root(&self) -> BlockNr;

    /// Entry `i`.
    fn load<'b, R: Reader<'b>>(&self, reader: R, i: u64) -> Result<Entry>;

    /// Entry `i`, which is likely to be changed.
    fn load_to_change<'b, T: Transaction<'b>>(&mut self, tx: &mut T, i: u64) -> Result<Entry>;

    /// Changes entry `i`, or adds it at the end.
    fn save<'b, T: Transaction<'b>>(&mut self, tx: &mut T, i: u64, entry: Entry) -> Result;
}

/// The number of entries of a [`TreeIndex`] that are kept in memory.
const CACHE_SIZE: usize = 64;

#[derive(Clone, Copy, Default)]
struct Cached {
    /// The number of the entry, if there is one.
    i: Option<u64>,
    entry: Entry,
    dirty: bool,
}

/// An index in a btree.
pub(crate) struct TreeIndex {
    tree: Tree<DiskEntry, 1>,
    /// Entry `i` is here at `i % CACHE_SIZE` or nowhere.
    cache: Vec<Cached>,
}

impl TreeIndex {
    /// Makes an empty index.
    pub(crate) fn create<'b, T: Transaction<'b>>(tx: &mut T) -> Result<Self> {
        let tree = Tree::<DiskEntry, 1>::empty(tx)?;
        Self::open(tree.root())
    }

    /// The index with the given root.
    pub(crate) fn open(root: BlockNr) -> Result<Self> {
        Ok(Self {
            tree: Tree::from_root(root),
            cache: Vec::try_filled(Cached::default(), CACHE_SIZE)?,
        })
    }

    /// Entry `i` of the index with the given root.
    pub(crate) fn load_from<'b, R: Reader<'b>>(root: BlockNr, reader: R, i: u64) -> Result<Entry> {
        let tree = Tree::<DiskEntry, 1>::from_root(root);
        let disk = tree
            .lookup(reader, &[i])?
            .ok_or(Error::Corrupt(root, Corruption::SpaceMapIndex))?;
        // The block manager refuses blocks beyond its device.
        Entry::parse(&disk, root, BlockNr::MAX)
    }

    /// Writes all entries that were changed to the tree.
    pub(crate) fn commit<'b, T: Transaction<'b>>(&mut self, tx: &mut T) -> Result {
        for cached in self.cache.iter_mut() {
            Self::write_back(&mut self.tree, tx, cached)?;
        }
        Ok(())
    }

    fn write_back<'b, T: Transaction<'b>>(
        tree: &mut Tree<DiskEntry, 1>,
        tx: &mut T,
        cached: &mut Cached,
    ) -> Result {
        if let (Some(i), true) = (cached.i, cached.dirty) {
            tree.insert(tx, &mut Plain::new(), &[i], cached.entry.to_disk())?;
            cached.dirty = false;
        }
        Ok(())
    }

    fn slot(i: u64) -> usize {
        (i % CACHE_SIZE as u64) as usize
    }

    fn cached(&self, i: u64) -> Option<Entry> {
        let cached = self.cache.get(Self::slot(i))?;
        (cached.i == Some(i)).then_some(cached.entry)
    }

    fn put<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        i: u64,
        entry: Entry,
        dirty: bool,
    ) -> Result {
        if let Some(cached) = self.cache.get_mut(Self::slot(i)) {
            if cached.i != Some(i) {
                Self::write_back(&mut self.tree, tx, cached)?;
            }
            *cached = Cached {
                i: Some(i),
                entry,
                dirty,
            };
        }
        Ok(())
    }
}

impl Index for TreeIndex {
    const MAX_ENTRIES: u64 = u64::MAX;

    fn root(&self) -> BlockNr {
        self.tree.root()
    }

    fn load<'b, R: Reader<'b>>(&self, reader: R, i: u64) -> Result<Entry> {
        match self.cached(i) {
            Some(entry) => Ok(entry),
            None => Self::load_from(self.tree.root(), reader, i),
        }
    }

    fn load_to_change<'b, T: Transaction<'b>>(&mut self, tx: &mut T, i: u64) -> Result<Entry> {
        if let Some(entry) = self.cached(i) {
            return Ok(entry);
        }
        let entry = Self::load_from(self.tree.root(), tx.bm(), i)?;
        self.put(tx, i, entry, false)?;
        Ok(entry)
    }

    fn save<'b, T: Transaction<'b>>(&mut self, tx: &mut T, i: u64, entry: Entry) -> Result {
        self.put(tx, i, entry, true)
    }
}
