// SPDX-License-Identifier: GPL-2.0

//! A space map of a device other than the metadata device.

use super::{
    candidates::Candidates,
    counts::Counts,
    first_of_bitmap,
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
        self.counts.change(tx, Change::Inc, blocks, &mut |_| ())
    }

    /// Takes a reference from each block of a range. `freed` is told of those for which it was the last.
    pub fn dec<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        blocks: BlockRange,
        freed: &mut dyn FnMut(BlockNr),
    ) -> Result {
        self.counts.change(tx, Change::Dec, blocks, freed)
    }

    /// Sets the reference count of a block.
    pub fn set_count<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        block: BlockNr,
        count: u32,
    ) -> Result {
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
        let block = loop {
            let block = self.find(tx)?;
            if usable(block) {
                break block;
            }
            self.candidates.skip_to(block + 1);
        };
        self.candidates.take(block);
        self.inc(tx, block..block + 1)?;
        Ok(block)
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
        self.candidates.add(old..self.counts.nr_blocks())
    }

    /// Writes all that is kept in memory to metadata blocks, so that [`root`](Self::root) has it all and
    /// the transaction can be committed.
    pub fn commit<'b, T: Transaction<'b>>(&mut self, tx: &mut T) -> Result {
        self.counts.index.commit(tx)?;
        self.counts.check_all(tx.bm())?;
        self.committed = Committed::of(&self.counts);
        self.candidates.restart(self.counts.nr_blocks())
    }

    /// What a superblock must keep, as of the last [`commit`](Self::commit).
    pub fn root(&self) -> SmRoot {
        self.counts.root()
    }

    /// Finds a block that is free now and was free when the transaction began.
    fn find<'b, T: Transaction<'b>>(&mut self, tx: &mut T) -> Result<BlockNr> {
        while let Some(blocks) = self.candidates.current() {
            let (i, _) = place(blocks.start);
            let end = first_of_bitmap(i + 1).min(blocks.end);
            let now = self.counts.index.load_to_change(tx, i)?;
            let before = self.committed.entry(tx.bm(), i)?;
            let in_bitmap = blocks.start..end;
            let found =
                Counts::<TreeIndex>::find_free(tx.bm(), i, &now, before.as_ref(), &in_bitmap, 1)?;
            match found {
                Some(run) => return Ok(run.start),
                None => self.candidates.skip_to(end),
            }
        }
        Err(Error::NoSpace)
    }
}
