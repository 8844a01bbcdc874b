// SPDX-License-Identifier: GPL-2.0

//! Reference counts on disk: bitmaps, an index of them, and a tree of the counts that do not fit a bitmap.
//!
//! The tree has an entry for each block whose bitmap entry says [`MANY`], and for no other.

use core::ops::Range;

use zerocopy::byteorder::little_endian::U32;

use super::{
    bitmap::{
        self,
        Bitmap,
        Entries,
        ENTRIES_PER_WORD,
        MANY,
        NR_ENTRIES, //
    },
    checker::Checker,
    first_of_bitmap,
    index::{
        Entry,
        Index, //
    },
    nr_bitmaps,
    pending::Change,
    place,
    SmRoot, //
};
use crate::{
    block::{
        BlockNr,
        BlockRange, //
    },
    block_manager::{
        BlockManager,
        Guard,
        Reader,
        WriteGuard, //
    },
    btree::{
        Plain,
        Tree, //
    },
    error::{
        Corruption,
        Error,
        Result, //
    },
    transaction::Transaction,
};

type RefCounts = Tree<U32, 1>;

/// The counts of a device's blocks.
pub(crate) struct Counts<I> {
    pub(crate) index: I,
    ref_counts: RefCounts,
    nr_blocks: BlockNr,
    nr_allocated: BlockNr,
    checker: Checker,
}

impl<I: Index> Counts<I> {
    /// Makes counts of no blocks.
    pub(crate) fn create<'b, T: Transaction<'b>>(tx: &mut T, index: I) -> Result<Self> {
        Ok(Self {
            index,
            ref_counts: Tree::empty(tx)?,
            nr_blocks: 0,
            nr_allocated: 0,
            checker: Checker::new(),
        })
    }

    /// The counts that `root` is of.
    pub(crate) fn open<'b, R: Reader<'b>>(reader: R, index: I, root: &SmRoot) -> Result<Self> {
        let nr_blocks = root.nr_blocks.get();
        let nr_allocated = root.nr_allocated.get();
        if nr_allocated > nr_blocks || nr_bitmaps(nr_blocks) > I::MAX_ENTRIES {
            return Err(Error::Corrupt(
                root.bitmap_root.get(),
                Corruption::SpaceMapIndex,
            ));
        }
        let mut counts = Self {
            index,
            ref_counts: Tree::from_root(root.ref_count_root.get()),
            nr_blocks,
            nr_allocated,
            checker: Checker::new(),
        };
        let mut checker = core::mem::take(&mut counts.checker);
        checker.load(&counts, reader)?;
        counts.checker = checker;
        Ok(counts)
    }

    /// What a superblock must keep.
    pub(crate) fn root(&self) -> SmRoot {
        SmRoot {
            nr_blocks: self.nr_blocks.into(),
            nr_allocated: self.nr_allocated.into(),
            bitmap_root: self.index.root().into(),
            ref_count_root: self.ref_counts.root().into(),
        }
    }

    /// The number of blocks that are counted.
    pub(crate) fn nr_blocks(&self) -> BlockNr {
        self.nr_blocks
    }

    /// The number of blocks whose count is not zero.
    pub(crate) fn nr_allocated(&self) -> BlockNr {
        self.nr_allocated
    }

    /// Adds `extra` blocks with a count of zero.
    pub(crate) fn extend<'b, T: Transaction<'b>>(&mut self, tx: &mut T, extra: BlockNr) -> Result {
        let nr_blocks = self.nr_blocks.checked_add(extra).ok_or(Error::Invalid)?;
        if nr_bitmaps(nr_blocks) > I::MAX_ENTRIES {
            return Err(Error::Invalid);
        }
        let (last, used) = place(self.nr_blocks);
        if extra != 0 && used != 0 {
            self.count_behind_end(tx, last, used)?;
        }
        for i in nr_bitmaps(self.nr_blocks)..nr_bitmaps(nr_blocks) {
            let bitmap = tx.new_block(&bitmap::VALIDATOR)?.location();
            self.index.save(tx, i, Entry::of_empty(bitmap))?;
        }
        self.nr_blocks = nr_blocks;
        self.checker.extend(nr_blocks)
    }

    /// Has the entry of the last bitmap, of which `used` entries count blocks, tell of the free entries behind them, too.
    ///
    /// That of `thin_restore` may not, and then nobody would look for free blocks there.
    fn count_behind_end<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        last: u64,
        used: u32,
    ) -> Result {
        let mut entry = self.index.load_to_change(tx, last)?;
        if !entry.is_counted {
            let guard = BlockManager::read(tx.bm(), entry.bitmap, &bitmap::VALIDATOR)?;
            entry.nr_free = Bitmap::of(&guard).nr_free();
            entry.is_counted = true;
        }
        entry.none_free_before = entry.none_free_before.min(used);
        self.index.save(tx, last, entry)
    }

    /// The count of a block.
    pub(crate) fn get<'b, R: Reader<'b>>(&self, reader: R, block: BlockNr) -> Result<u32> {
        match self.bitmap_value(reader, block)? {
            MANY => self.ref_count(reader, block),
            small => Ok(small),
        }
    }

    /// Whether the count of a block is greater than one.
    pub(crate) fn is_shared<'b, R: Reader<'b>>(&self, reader: R, block: BlockNr) -> Result<bool> {
        Ok(self.bitmap_value(reader, block)? > 1)
    }

    /// Whether a bitmap has the count of a block as zero. It is not checked for this.
    pub(crate) fn seems_free<B: BlockManager>(&self, bm: &B, block: BlockNr) -> Result<bool> {
        let (i, entry) = place(block);
        let guard = bm.read_raw(self.index.load(bm, i)?.bitmap)?;
        Ok(Bitmap::of(&guard).get(entry) == 0)
    }

    /// The count of a block, or [`MANY`].
    fn bitmap_value<'b, R: Reader<'b>>(&self, reader: R, block: BlockNr) -> Result<u32> {
        if block >= self.nr_blocks {
            return Err(Error::OutOfBounds(block));
        }
        let (i, entry) = place(block);
        let bitmap = self.index.load(reader, i)?.bitmap;
        let guard = reader.read(bitmap, &bitmap::VALIDATOR)?;
        Ok(Bitmap::of(&guard).get(entry))
    }

    /// The count of a block that the tree must have.
    fn ref_count<'b, R: Reader<'b>>(&self, reader: R, block: BlockNr) -> Result<u32> {
        match self.ref_counts.lookup(reader, &[block])? {
            Some(count) if count.get() >= MANY => Ok(count.get()),
            _ => Err(Error::RefCount(block)),
        }
    }

    /// Changes the counts of ranges of blocks by one, in this order.
    ///
    /// Each bitmap is gone to once for all changes in a row that it has entries of. `freed` is told of the blocks
    /// whose counts get zero. Gives [`Error::RefCount`] if one would drop below zero or overflow.
    pub(crate) fn change<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        changes: impl Iterator<Item = (Change, BlockRange)> + Clone,
        freed: &mut dyn FnMut(BlockRange),
    ) -> Result {
        let mut open: Option<OpenBitmap<'b, T::Bm>> = None;
        for (change, blocks) in changes.clone() {
            if blocks.start > blocks.end || blocks.end > self.nr_blocks {
                return Err(Error::OutOfBounds(blocks.end.max(blocks.start)));
            }
            let mut next = blocks.start;
            while next < blocks.end {
                let (i, first) = place(next);
                let n = (blocks.end - next).min(u64::from(NR_ENTRIES - first));
                let entries = first..first + n as u32;
                if open.as_ref().is_none_or(|open| open.i != i) {
                    self.close(tx, open.take())?;
                    open = Some(self.open_bitmap(tx, i)?);
                }
                if let Some(bitmap) = &mut open {
                    self.change_bitmap(tx, change, bitmap, entries, freed)?;
                }
                next += n;
            }
        }
        self.close(tx, open)?;
        if Checker::CHECKS {
            for (change, blocks) in changes.clone() {
                self.checker.change(change, blocks)?;
            }
            for (_, blocks) in changes {
                self.check(tx.bm(), blocks)?;
            }
        }
        Ok(())
    }

    /// Makes bitmap `i` writable.
    fn open_bitmap<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        i: u64,
    ) -> Result<OpenBitmap<'b, T::Bm>> {
        let mut entry = self.index.load_to_change(tx, i)?;
        let guard = shadow_bitmap(tx, &mut entry)?;
        Ok(OpenBitmap {
            i,
            entry,
            guard: Some(guard),
        })
    }

    /// Lets a bitmap go.
    fn close<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        bitmap: Option<OpenBitmap<'b, T::Bm>>,
    ) -> Result {
        match bitmap {
            Some(OpenBitmap { i, entry, guard }) => {
                drop(guard);
                self.index.save(tx, i, entry)
            }
            None => Ok(()),
        }
    }

    /// Changes counts of a bitmap.
    fn change_bitmap<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        change: Change,
        open: &mut OpenBitmap<'b, T::Bm>,
        entries: Range<u32>,
        freed: &mut dyn FnMut(BlockRange),
    ) -> Result {
        let base = first_of_bitmap(open.i);
        let index = &mut open.entry;
        let mut next = entries.start;
        while next < entries.end {
            let word_nr = next / ENTRIES_PER_WORD;
            let word_start = word_nr * ENTRIES_PER_WORD;
            let end = entries.end.min(word_start + ENTRIES_PER_WORD);

            let guard = match &mut open.guard {
                Some(guard) => guard,
                none => none.insert(tx.bm().write(index.bitmap, &bitmap::VALIDATOR)?),
            };
            let bitmap = Bitmap::of_mut(guard);
            let mut word = bitmap.word(word_nr);
            let entries = Entries::within(next - word_start..end - word_start);
            let first = base + u64::from(word_start);
            // Those whose counts are in the tree, and those that move there; a bit for each.
            let (many, grown) = match change {
                Change::Inc => {
                    let done = word.inc(entries);
                    index.allocated(word_start, done.allocated);
                    self.nr_allocated += u64::from(done.allocated.len());
                    (done.many, done.grown.to_bits())
                }
                Change::Dec => {
                    let done = word.dec(entries);
                    if let Some(zero) = done.zero.first() {
                        return Err(Error::RefCount(first + u64::from(zero)));
                    }
                    index.freed(word_start, done.freed);
                    self.nr_allocated = self
                        .nr_allocated
                        .checked_sub(done.freed.len().into())
                        .ok_or(Error::RefCount(first))?;
                    if done.freed == entries {
                        freed(base + u64::from(next)..base + u64::from(end));
                    } else {
                        for run in runs(done.freed.to_bits()) {
                            freed(first + u64::from(run.start)..first + u64::from(run.end));
                        }
                    }
                    (done.many, 0)
                }
            };
            let many = many.to_bits();
            bitmap.set_word(word_nr, word);

            if many | grown != 0 {
                // While the tree changes nobody may hold a bitmap, as new blocks are looked for in bitmaps.
                open.guard = None;
                let new = bits(grown).map(|i| (first + u64::from(i), MANY.into()));
                self.ref_counts.insert_sorted(tx, &mut Plain::new(), new)?;
                let fit = self.change_ref_counts(tx, change, first, many)?;
                if fit != 0 {
                    for i in bits(fit) {
                        word.set(i, MANY - 1);
                    }
                    let mut guard = tx.bm().write(index.bitmap, &bitmap::VALIDATOR)?;
                    Bitmap::of_mut(&mut guard).set_word(word_nr, word);
                    open.guard = Some(guard);
                }
            }
            next = end;
        }
        Ok(())
    }

    /// Sets a count in the tree.
    fn set_ref_count<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        block: BlockNr,
        count: u32,
    ) -> Result {
        self.ref_counts
            .insert(tx, &mut Plain::new(), &[block], count.into())?;
        Ok(())
    }

    /// Changes counts in the tree by one: those of the blocks that `many` has bits for, the lowest for `first`.
    ///
    /// Returns the bits of the blocks whose counts fit the bitmap now, and were removed.
    fn change_ref_counts<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        change: Change,
        first: BlockNr,
        many: u32,
    ) -> Result<u32> {
        let end = first.saturating_add(ENTRIES_PER_WORD.into());
        let mut left = many;
        let mut fit = 0u32;
        while left != 0 {
            let lowest = left & left.wrapping_neg();
            let block = first + u64::from(lowest.trailing_zeros());
            let update = |block: BlockNr, count: &mut U32| {
                let bit = 1u32.checked_shl((block - first) as u32).unwrap_or(0);
                if left & bit == 0 {
                    return Ok(());
                }
                left &= !bit;
                let old = count.get();
                let new = match change {
                    Change::Inc if old >= MANY => old.checked_add(1),
                    Change::Dec if old >= MANY => Some(old - 1),
                    _ => None,
                };
                let new = new.ok_or(Error::RefCount(block))?;
                if new < MANY {
                    fit |= bit;
                }
                count.set(new);
                Ok(())
            };
            self.ref_counts
                .update_leaf(tx, &mut Plain::new(), block..end, update)?;
            if left & lowest != 0 {
                return Err(Error::RefCount(block));
            }
        }
        for run in runs(fit) {
            let run = first + u64::from(run.start)..first + u64::from(run.end);
            self.ref_counts
                .remove_range(tx, &mut Plain::new(), run.start, run.end)?;
        }
        Ok(fit)
    }

    /// Sets the count of a block.
    pub(crate) fn set<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        block: BlockNr,
        count: u32,
    ) -> Result {
        let old = self.get(tx.bm(), block)?;
        let (i, entry) = place(block);
        let mut index = self.index.load_to_change(tx, i)?;

        let mut guard = shadow_bitmap(tx, &mut index)?;
        Bitmap::of_mut(&mut guard).set(entry, count.min(MANY));
        drop(guard);

        if count >= MANY {
            self.set_ref_count(tx, block, count)?;
        } else if old >= MANY {
            self.ref_counts.remove(tx, &mut Plain::new(), &[block])?;
        }
        let (word, i_in_word) = (entry - entry % ENTRIES_PER_WORD, entry % ENTRIES_PER_WORD);
        let in_word = Entries::within(i_in_word..i_in_word + 1);
        if old == 0 && count != 0 {
            index.allocated(word, in_word);
            self.nr_allocated += 1;
        } else if old != 0 && count == 0 {
            index.freed(word, in_word);
            self.nr_allocated = self
                .nr_allocated
                .checked_sub(1)
                .ok_or(Error::RefCount(block))?;
        }
        self.index.save(tx, i, index)?;
        self.checker.set(block, count)?;
        self.check(tx.bm(), block..block + 1)
    }

    /// Looks in bitmap `i` for a run of blocks of `blocks` that are free, and free as well in the bitmap in block
    /// `other`, if there is one. Gives the first one, but no more than `max` blocks, which is not zero.
    pub(crate) fn find_free<'b, R: Reader<'b>>(
        reader: R,
        i: u64,
        index: &Entry,
        other: Option<&Entry>,
        blocks: &BlockRange,
        max: u32,
    ) -> Result<Option<BlockRange>> {
        if index.nr_free == 0 || other.is_some_and(|o| o.nr_free == 0) {
            return Ok(None);
        }
        let base = first_of_bitmap(i);
        let n = u64::from(NR_ENTRIES);
        let begin = blocks.start.saturating_sub(base).min(n) as u32;
        let end = blocks.end.saturating_sub(base).min(n) as u32;
        let begin = begin
            .max(index.none_free_before)
            .max(other.map_or(0, |o| o.none_free_before));

        let guard = reader.read(index.bitmap, &bitmap::VALIDATOR)?;
        let found = match other.filter(|o| o.bitmap != index.bitmap) {
            None => Bitmap::of(&guard).find_free_run(begin..end, None, max),
            Some(other) => {
                let other = reader.read(other.bitmap, &bitmap::VALIDATOR)?;
                Bitmap::of(&guard).find_free_run(begin..end, Some(Bitmap::of(&other)), max)
            }
        };
        Ok(found.map(|run| base + u64::from(run.start)..base + u64::from(run.end)))
    }

    /// Compares the counts of `blocks` with the checker's, if there is one.
    fn check<B: BlockManager>(&self, bm: &B, blocks: BlockRange) -> Result {
        self.checker.check(self, bm, blocks)
    }

    /// Compares all counts with the checker's, if there is one.
    pub(crate) fn check_all<B: BlockManager>(&self, bm: &B) -> Result {
        self.checker.check_all(self, bm)
    }
}

/// A bitmap that is being changed.
struct OpenBitmap<'b, B: BlockManager + 'b> {
    /// Which one it is.
    i: u64,
    entry: Entry,
    /// The bitmap, unless it was let go for a time.
    guard: Option<WriteGuard<'b, B>>,
}

/// Makes a bitmap writable.
fn shadow_bitmap<'b, T: Transaction<'b>>(
    tx: &mut T,
    index: &mut Entry,
) -> Result<WriteGuard<'b, T::Bm>> {
    let guard = tx.shadow(index.bitmap, &bitmap::VALIDATOR)?.guard;
    if guard.location() != index.bitmap {
        index.bitmap = guard.location();
        if !index.is_counted {
            index.nr_free = Bitmap::of(&guard).nr_free();
            index.is_counted = true;
        }
    }
    Ok(guard)
}

/// The runs of bits that are set, in ascending order.
fn runs(mut mask: u32) -> impl Iterator<Item = Range<u32>> {
    core::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let start = mask.trailing_zeros();
        let end = start + (mask >> start).trailing_ones();
        mask &= u32::MAX.checked_shl(end).unwrap_or(0);
        Some(start..end)
    })
}

/// The numbers of the bits that are set, in ascending order.
fn bits(mut mask: u32) -> impl Iterator<Item = u32> + Clone {
    core::iter::from_fn(move || {
        let i = mask.trailing_zeros();
        if mask == 0 {
            return None;
        }
        mask &= mask - 1;
        Some(i)
    })
}
