// SPDX-License-Identifier: GPL-2.0

//! A space map of a device other than the metadata device.

use core::iter::once;

use super::{
    candidates::Candidates,
    counts::Counts,
    first_of_bitmap,
    full_bitmaps::FullBitmaps,
    index::{
        Entry,
        Index,
        TreeIndex, //
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
    block_manager::Reader,
    error::{
        Error,
        Result, //
    },
    transaction::Transaction,
};

/// What was committed last.
struct Committed {
    index_root: BlockNr,
    nr_blocks: BlockNr,
    /// The index entry that was looked at last, and its number.
    entry: Option<(u64, Entry)>,
}

impl Committed {
    fn of(counts: &Counts<TreeIndex>) -> Self {
        Self {
            index_root: counts.index.root(),
            nr_blocks: counts.nr_blocks(),
            entry: None,
        }
    }

    /// Index entry `i`, if there is one.
    fn entry<'b, R: Reader<'b>>(&mut self, reader: R, i: u64) -> Result<Option<Entry>> {
        match self.entry {
            _ if i >= nr_bitmaps(self.nr_blocks) => Ok(None),
            Some((last, entry)) if last == i => Ok(Some(entry)),
            _ => {
                let entry = TreeIndex::load_from(self.index_root, reader, i)?;
                self.entry = Some((i, entry));
                Ok(Some(entry))
            }
        }
    }
}

/// Counts references to the blocks of a device, in metadata blocks.
///
/// A change takes the transaction that it is part of. After any error from a change the transaction must be
/// rolled back, and the space map opened again. [`Error::NoSpace`] from [`new_block`](Self::new_block)
/// may also mean that all free blocks were freed in this transaction, or handed out before in it.
pub struct DiskSpaceMap {
    counts: Counts<TreeIndex>,
    committed: Committed,
    candidates: Candidates,
    full: FullBitmaps,
}

impl DiskSpaceMap {
    /// Makes a space map of `nr_blocks` blocks, all free.
    pub fn create<'b, T: Transaction<'b>>(tx: &mut T, nr_blocks: BlockNr) -> Result<Self> {
        let index = TreeIndex::create(tx)?;
        let mut counts = Counts::create(tx, index)?;
        counts.extend(tx, nr_blocks)?;
        counts.index.commit(tx)?;
        Self::new(counts)
    }

    /// The space map that `root` is of. Its index and bitmaps are checked when they are used.
    pub fn open<'b, R: Reader<'b>>(reader: R, root: &SmRoot) -> Result<Self> {
        let index = TreeIndex::open(root.bitmap_root.get())?;
        Self::new(Counts::open(reader, index, root)?)
    }

    fn new(counts: Counts<TreeIndex>) -> Result<Self> {
        Ok(Self {
            committed: Committed::of(&counts),
            candidates: Candidates::new(0, counts.nr_blocks())?,
            full: FullBitmaps::new(),
            counts,
        })
    }

    /// The number of blocks, without those that were added since the last commit.
    pub fn nr_blocks(&self) -> BlockNr {
        self.committed.nr_blocks
    }

    /// The number of free blocks, without those that were added since the last commit.
    ///
    /// Blocks that were freed in this transaction are included, although they can be handed out only after
    /// a commit.
    pub fn nr_free(&self) -> BlockNr {
        self.committed
            .nr_blocks
            .saturating_sub(self.counts.nr_allocated())
    }

    /// The reference count of a block.
    pub fn get_count<'b, R: Reader<'b>>(&self, reader: R, block: BlockNr) -> Result<u32> {
        self.counts.get(reader, block)
    }

    /// Whether a block has more than one reference.
    pub fn is_shared<'b, R: Reader<'b>>(&self, reader: R, block: BlockNr) -> Result<bool> {
        self.counts.is_shared(reader, block)
    }

    /// Adds a reference to each block of a range.
    pub fn inc<'b, T: Transaction<'b>>(&mut self, tx: &mut T, blocks: BlockRange) -> Result {
        self.change(tx, once((Change::Inc, blocks)), &mut |_| ())
    }

    /// Takes a reference from each block of a range. `freed` is told of those for which it was the last, in ascending
    /// order.
    pub fn dec<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        blocks: BlockRange,
        freed: &mut dyn FnMut(BlockRange),
    ) -> Result {
        self.dec_all(tx, once(blocks), freed)
    }

    /// As [`dec`](Self::dec), for each range of several; at less cost if they ascend.
    pub fn dec_all<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        ranges: impl Iterator<Item = BlockRange> + Clone,
        freed: &mut dyn FnMut(BlockRange),
    ) -> Result {
        let changes = ranges.map(|blocks| (Change::Dec, blocks));
        self.change(tx, changes, freed)
    }

    fn change<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        changes: impl Iterator<Item = (Change, BlockRange)> + Clone,
        freed: &mut dyn FnMut(BlockRange),
    ) -> Result {
        self.counts.change(tx, changes.clone(), freed)?;
        // Blocks may be free now, and a bitmap that is copied is counted anew.
        for (_, blocks) in changes {
            for i in place(blocks.start).0..nr_bitmaps(blocks.end) {
                self.full.remove(i);
            }
        }
        Ok(())
    }

    /// Sets the reference count of a block.
    pub fn set_count<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        block: BlockNr,
        count: u32,
    ) -> Result {
        self.full.remove(place(block).0);
        self.counts.set(tx, block, count)
    }

    /// Finds a free block that is `usable` and gives it a reference count of one.
    ///
    /// One that is not usable is not looked at again before the next commit or
    /// [`look_again`](Self::look_again).
    pub fn new_block<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        usable: &mut dyn FnMut(BlockNr) -> bool,
    ) -> Result<BlockNr> {
        self.new_run(tx, 1, usable)?
            .map(|run| run.start)
            .ok_or(Error::NoSpace)
    }

    /// As [`new_block`](Self::new_block), for the next run of blocks, of `max` at most, which is not zero; `None` if
    /// there is none.
    pub fn new_run<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        max: u32,
        usable: &mut dyn FnMut(BlockNr) -> bool,
    ) -> Result<Option<BlockRange>> {
        while let Some(free) = self.find(tx, max)? {
            // The first that is not usable ends the run, or is left out if there is no run yet.
            let end = free.clone().find(|block| !usable(*block));
            let run = free.start..end.unwrap_or(free.end);
            if run.is_empty() {
                self.skip_unusable(tx, usable)?;
                continue;
            }
            self.candidates.take_to(run.end);
            self.inc(tx, run.clone())?;
            if end.is_some() {
                self.candidates.skip_to(run.end + 1);
            }
            return Ok(Some(run));
        }
        Ok(None)
    }

    /// Takes back blocks that [`new_run`](Self::new_run) gave in this transaction, and that nobody has used: they can
    /// be handed out again before a commit.
    pub fn put_back<'b, T: Transaction<'b>>(&mut self, tx: &mut T, blocks: BlockRange) -> Result {
        self.dec(tx, blocks.clone(), &mut |_| ())?;
        // If memory is short, they wait for the commit.
        let _ = self.candidates.put_back(blocks);
        Ok(())
    }

    /// The first run within `blocks` of those that are free, and were so at the last commit.
    ///
    /// What the device holds there is of no use to anybody, whether the transaction is committed or not.
    pub fn find_free<'b, R: Reader<'b>>(
        &mut self,
        reader: R,
        blocks: BlockRange,
    ) -> Result<Option<BlockRange>> {
        let limit = blocks.end.min(self.committed.nr_blocks);
        let mut run: BlockRange = 0..0;
        let mut next = blocks.start;
        while next < limit {
            let (i, _) = place(next);
            let end = first_of_bitmap(i + 1).min(limit);
            let now = self.counts.index.load(reader, i)?;
            let before = self.committed.entry(reader, i)?;
            let in_bitmap = next..end;
            let found = Counts::<TreeIndex>::find_free(
                reader,
                i,
                &now,
                before.as_ref(),
                &in_bitmap,
                u32::MAX,
            )?;
            match found {
                Some(found) if run.is_empty() => run = found,
                Some(found) if found.start == run.end => run.end = found.end,
                _ => {}
            }
            // Only one that reaches the end of its bitmap may go on in the next.
            if !run.is_empty() && run.end != end {
                break;
            }
            next = end;
        }
        Ok((!run.is_empty()).then_some(run))
    }

    /// Looks again at blocks that were not usable, in a transaction that has changed nothing yet.
    pub fn look_again(&mut self) -> Result {
        self.candidates.restart(self.counts.nr_blocks())
    }

    /// Adds `extra` free blocks, which can be handed out at once.
    pub fn extend<'b, T: Transaction<'b>>(&mut self, tx: &mut T, extra: BlockNr) -> Result {
        let old = self.counts.nr_blocks();
        self.counts.extend(tx, extra)?;
        // All that are added behind the last one are new.
        self.full.remove(place(old).0);
        self.candidates.add(old..self.counts.nr_blocks())
    }

    /// Writes all that is kept in memory to metadata blocks, so that [`root`](Self::root) has it all and
    /// the transaction can be committed.
    pub fn prepare<'b, T: Transaction<'b>>(&mut self, tx: &mut T) -> Result {
        self.counts.index.commit(tx)?;
        self.counts.check_all(tx.bm())
    }

    /// Begins the next transaction: what was [`prepare`](Self::prepare)d is committed.
    pub fn finish(&mut self) -> Result {
        self.committed = Committed::of(&self.counts);
        self.candidates.restart(self.counts.nr_blocks())
    }

    /// For those who do nothing between the two: [`prepare`](Self::prepare), as if it were committed already.
    pub fn commit<'b, T: Transaction<'b>>(&mut self, tx: &mut T) -> Result {
        self.prepare(tx)?;
        self.finish()
    }

    /// What a superblock must keep, as of the last [`prepare`](Self::prepare).
    pub fn root(&self) -> SmRoot {
        self.counts.root()
    }

    /// Leaves out the next block, which is not usable, and those of its run up to the first one that is.
    fn skip_unusable<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        usable: &mut dyn FnMut(BlockNr) -> bool,
    ) -> Result {
        if let Some(run) = self.find(tx, u32::MAX)? {
            let next = run.clone().skip(1).find(|block| usable(*block));
            self.candidates.skip_to(next.unwrap_or(run.end));
        }
        Ok(())
    }

    /// Finds a run of blocks, `max` at most, that are free now and were free when the transaction began.
    fn find<'b, T: Transaction<'b>>(&mut self, tx: &mut T, max: u32) -> Result<Option<BlockRange>> {
        while let Some(blocks) = self.candidates.current() {
            let (i, _) = place(blocks.start);
            let other = self.full.next_other(i);
            if other != i {
                self.candidates.skip_to(first_of_bitmap(other));
                continue;
            }
            let end = first_of_bitmap(i + 1).min(blocks.end);
            let now = self.counts.index.load_to_change(tx, i)?;
            if now.nr_free == 0 {
                // If memory is short, it is looked at again.
                let _ = self.full.insert(i);
                self.candidates.skip_to(end);
                continue;
            }
            let before = self.committed.entry(tx.bm(), i)?;
            let in_bitmap = blocks.start..end;
            let found =
                Counts::<TreeIndex>::find_free(tx.bm(), i, &now, before.as_ref(), &in_bitmap, max)?;
            match found {
                Some(run) => return Ok(Some(run)),
                None => self.candidates.skip_to(end),
            }
        }
        Ok(None)
    }
}
