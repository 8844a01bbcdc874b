// SPDX-License-Identifier: GPL-2.0

//! A transaction on a metadata device.
//!
//! Everything is changed in copies, in free blocks. To commit takes two steps: first all of them are written
//! and flushed ([`pre_commit`](TransactionManager::pre_commit)), then the superblock that refers to them is
//! ([`commit`](TransactionManager::commit)). A crash before the second one leaves what was committed before. To
//! roll back, reset the block manager and open everything anew.
//!
//! Who does not want the transaction manager to wait for the device flushes the block manager on his own: after
//! [`prepare`](TransactionManager::prepare), and once the superblock is written, before
//! [`finish`](TransactionManager::finish).
//!
//! How the metadata space map counts its own blocks is told in [`metadata`](crate::space_map::metadata).

pub use crate::prefetch_set::PrefetchSet;

use crate::{
    block::{
        BlockNr,
        BlockRange,
        Validator, //
    },
    block_manager::{
        BlockManager,
        Guard,
        ReadGuard,
        Reader,
        WriteGuard, //
    },
    error::{
        Corruption,
        Error,
        Result, //
    },
    platform::{
        try_box,
        Box, //
    },
    space_map::{
        metadata::{
            one,
            AllocTx,
            Allocator,
            MetadataCounts, //
        },
        BlockIndex,
        Change,
        SmRoot,
        MAX_METADATA_BLOCKS, //
    },
    transaction::{
        Shadow,
        Transaction, //
    },
};

/// The state of transactions on a metadata device: its space map, and which blocks may be written in place.
///
/// There always is a transaction under way. [`tx`](Self::tx) gives access to it.
///
/// When a change of reference counts fails half way, the counts are not worth anything any more. From then on
/// every change and commit gives the same error again.
pub struct TransactionManager {
    alloc: Allocator,
    counts: MetadataCounts,
    failed: Option<Error>,
    prefetches: Box<PrefetchSet>,
}

impl TransactionManager {
    /// Makes a space map for the whole device, or as much of it as a space map can count, in the blocks behind
    /// `superblock`, which is counted as well; blocks before it are free.
    ///
    /// The transaction is still to be committed. Gives [`Error::Invalid`] if the device is too small for
    /// the roots of a space map, and [`Error::NoSpace`] if it is for the bitmaps.
    pub fn create<B: BlockManager>(bm: &B, superblock: BlockNr) -> Result<Self> {
        let nr_blocks = bm.nr_blocks().min(MAX_METADATA_BLOCKS);
        let first = superblock
            .checked_add(1)
            .filter(|first| *first <= nr_blocks)
            .ok_or(Error::OutOfBounds(superblock))?;

        // First the index, then the root of the tree, then the bitmaps, from the first block on.
        let mut alloc = Allocator::new(superblock, first)?;
        alloc.extend(first..nr_blocks)?;
        alloc.queue_superblock()?;
        let mut tx = AllocTx::new(bm, &mut alloc);
        let mut counts = BlockIndex::create(&mut tx)
            .and_then(|index| MetadataCounts::create(&mut tx, index))
            .map_err(|e| match e {
                Error::NoSpace => Error::Invalid,
                e => e,
            })?;
        counts.extend(&mut tx, nr_blocks)?;

        let mut tm = Self::new(alloc, counts)?;
        tm.write_counts(bm)?;
        tm.alloc.take_over(&tm.counts)?;
        Ok(tm)
    }

    /// Opens the space map that `root` is of, which `superblock` was read from.
    ///
    /// What is read is checked: the index now, the rest when it is used.
    pub fn open<B: BlockManager>(bm: &B, superblock: BlockNr, root: &SmRoot) -> Result<Self> {
        let index = BlockIndex::open(bm, root.bitmap_root.get(), root.nr_blocks.get())?;
        let counts = MetadataCounts::open(bm, index, root)?;
        let mut alloc = Allocator::new(superblock, 0)?;
        alloc.take_over(&counts)?;
        Self::new(alloc, counts)
    }

    fn new(alloc: Allocator, counts: MetadataCounts) -> Result<Self> {
        Ok(Self {
            alloc,
            counts,
            failed: None,
            prefetches: try_box(PrefetchSet::new())?,
        })
    }

    /// Checks that the counts, as they were opened, have the superblock in use: gives
    /// [`SuperblockFree`](Corruption::SuperblockFree) if not.
    ///
    /// One bitmap is read for this. That it cannot be read is no error yet, as with all others.
    pub fn check_superblock<B: BlockManager>(&self, bm: &B) -> Result {
        let superblock = self.alloc.superblock();
        // Almost always it is in use, and whoever wants the bitmap later has it checked.
        if !matches!(self.counts.seems_free(bm, superblock), Ok(true)) {
            return Ok(());
        }
        match self.counts.get(bm, superblock) {
            Ok(0) => Err(Error::Corrupt(superblock, Corruption::SuperblockFree)),
            _ => Ok(()),
        }
    }

    /// The transaction under way.
    pub fn tx<'t, 'b, B: BlockManager>(&'t mut self, bm: &'b B) -> Tx<'t, 'b, B> {
        Tx { bm, tm: self }
    }

    /// The number of blocks that are counted.
    pub fn nr_blocks(&self) -> BlockNr {
        self.counts.nr_blocks()
    }

    /// The number of blocks that can be handed out before the next commit, without those that were added since
    /// the last one.
    pub fn nr_free(&self) -> BlockNr {
        self.alloc.nr_free()
    }

    /// The reference count of a block.
    pub fn ref_count<B: BlockManager>(&self, bm: &B, block: BlockNr) -> Result<u32> {
        self.counts.get(bm, block)
    }

    /// Adds `extra` free blocks at the end, which can be handed out at once.
    ///
    /// Gives [`Error::Invalid`] and changes nothing if they would be more than a space map can count.
    pub fn extend<B: BlockManager>(&mut self, bm: &B, extra: BlockNr) -> Result {
        self.check_usable()?;
        let old = self.counts.nr_blocks();
        let new = old
            .checked_add(extra)
            .filter(|new| *new <= MAX_METADATA_BLOCKS)
            .ok_or(Error::Invalid)?;

        // The old blocks may all be in use, so the new ones are looked at first, and hold their own bitmaps.
        // Their counts are changed when they are counted, which is when the queue is worked off.
        let result = self.alloc.extend(old..new).and_then(|()| {
            let mut tx = AllocTx::new(bm, &mut self.alloc);
            self.counts.extend(&mut tx, extra)
        });
        self.settle(bm, result)
    }

    /// Completes all changes but the superblock in the block manager's cache.
    ///
    /// Gives what the superblock must keep of the metadata space map. All other space maps must be prepared
    /// before, and nothing may change until [`finish`](Self::finish). The block manager must be flushed before
    /// the superblock is written.
    pub fn prepare<B: BlockManager>(&mut self, bm: &B) -> Result<SmRoot> {
        self.check_usable()?;
        let result = self.write_counts(bm);
        self.note(result)?;
        Ok(self.counts.root())
    }

    /// Begins the next transaction. The superblock has been written and is stable.
    pub fn finish(&mut self) -> Result {
        self.check_usable()?;
        self.alloc.forget_shadows();
        let result = self.alloc.take_over(&self.counts);
        self.note(result)
    }

    /// Writes all changes but the superblock to the device, and makes them stable.
    ///
    /// As [`prepare`](Self::prepare); nothing may change until [`commit`](Self::commit).
    pub fn pre_commit<B: BlockManager>(&mut self, bm: &B) -> Result<SmRoot> {
        let root = self.prepare(bm)?;
        let result = bm.flush();
        self.note(result)?;
        Ok(root)
    }

    /// Writes the superblock, and makes it stable: the transaction is committed, and the next one begins.
    pub fn commit<'b, B: BlockManager>(
        &mut self,
        bm: &'b B,
        superblock: WriteGuard<'b, B>,
    ) -> Result {
        self.check_usable()?;
        let result = bm.commit_superblock(superblock);
        self.note(result)?;
        self.finish()
    }

    /// Asks for [`threshold_crossed`](Self::threshold_crossed) to tell when the number of free blocks falls to
    /// `blocks` or below.
    pub fn set_threshold(&mut self, blocks: BlockNr) {
        self.alloc.threshold().set(blocks);
    }

    /// Whether the number of free blocks fell to the threshold from above it since this was last asked.
    ///
    /// To be asked after changes.
    pub fn threshold_crossed(&mut self) -> bool {
        self.alloc.threshold().take_crossed()
    }

    /// The blocks that readers did not want to wait for.
    pub fn prefetches(&self) -> &PrefetchSet {
        &self.prefetches
    }

    #[inline]
    fn check_usable(&self) -> Result {
        match self.failed {
            None => Ok(()),
            Some(e) => Err(e),
        }
    }

    /// Remembers a failure after which the counts cannot be trusted.
    fn note(&mut self, result: Result) -> Result {
        if let Err(e) = result {
            self.failed = Some(e);
        }
        result
    }

    /// Applies all queued changes of counts, and what these queue in turn.
    fn apply<B: BlockManager>(&mut self, bm: &B) -> Result {
        while let Some(changes) = self.alloc.pending().take() {
            let mut tx = AllocTx::new(bm, &mut self.alloc);
            let result = self
                .counts
                .change(&mut tx, changes.iter().cloned(), &mut |_| ());
            self.alloc.pending().put_back(changes);
            result?;
        }
        Ok(())
    }

    /// Finishes a change of which `queued` tells whether all that it does to counts was queued.
    fn settle<B: BlockManager>(&mut self, bm: &B, queued: Result) -> Result {
        let result = queued.and_then(|()| self.apply(bm));
        self.note(result)
    }

    /// Brings the counts, and the index block, up to date.
    fn write_counts<B: BlockManager>(&mut self, bm: &B) -> Result {
        self.apply(bm)?;
        if self.counts.index.is_dirty() {
            // The index block's own copy is counted before it is filled, so that it has all counts. Entries
            // are kept in memory, so no further copy of it is needed.
            let mut tx = AllocTx::new(bm, &mut self.alloc);
            self.counts.index.shadow(&mut tx)?;
            self.apply(bm)?;
            self.counts.index.write(bm)?;
        }
        self.counts.check_all(bm)
    }
}

/// Access to the transaction under way.
pub struct Tx<'t, 'b, B: BlockManager> {
    bm: &'b B,
    tm: &'t mut TransactionManager,
}

impl<'b, B: BlockManager> Transaction<'b> for Tx<'_, 'b, B> {
    type Bm = B;

    fn bm(&self) -> &'b B {
        self.bm
    }

    fn new_block(&mut self, validator: &'static Validator) -> Result<WriteGuard<'b, B>> {
        self.tm.check_usable()?;
        let guard = self.tm.alloc.hand_out(self.bm, validator)?;
        // If memory is short, the block will be copied when it is changed again.
        let _ = self.tm.alloc.insert_shadow(guard.location());
        let queued = one(guard.location()).and_then(|b| self.tm.alloc.queue(Change::Inc, b));
        self.tm.settle(self.bm, queued)?;
        Ok(guard)
    }

    fn shadow(&mut self, block: BlockNr, validator: &'static Validator) -> Result<Shadow<'b, B>> {
        self.tm.check_usable()?;
        if self.tm.alloc.is_sole_shadow(block) {
            return Ok(Shadow {
                guard: self.bm.write(block, validator)?,
                was_shared: false,
            });
        }
        let was_shared = self.tm.counts.is_shared(self.bm, block)?;
        if !was_shared && self.tm.alloc.is_shadow(block) {
            let guard = self.bm.write(block, validator)?;
            return Ok(Shadow { guard, was_shared });
        }

        let guard = self.tm.alloc.copy(self.bm, block, validator)?;
        // As above.
        let _ = self.tm.alloc.insert_shadow(guard.location());
        let queued = self.tm.alloc.queue_copy(block, guard.location());
        self.tm.settle(self.bm, queued)?;
        Ok(Shadow { guard, was_shared })
    }

    fn inc(&mut self, blocks: BlockRange) -> Result {
        self.tm.check_usable()?;
        let end = blocks.end.min(self.tm.nr_blocks());
        self.tm.alloc.add_references(blocks.start..end);
        let queued = self.tm.alloc.queue(Change::Inc, blocks);
        self.tm.settle(self.bm, queued)
    }

    fn dec(&mut self, blocks: BlockRange) -> Result {
        self.tm.check_usable()?;
        let queued = self.tm.alloc.queue(Change::Dec, blocks);
        self.tm.settle(self.bm, queued)
    }

    fn ref_count(&self, block: BlockNr) -> Result<u32> {
        self.tm.ref_count(self.bm, block)
    }
}

/// A view of a block manager that never waits, and notes what it lacks.
pub struct NonBlocking<'b, B> {
    bm: &'b B,
    prefetches: &'b PrefetchSet,
}

impl<'b, B> NonBlocking<'b, B> {
    /// A view of `bm`; blocks that are not in memory are noted in `prefetches`.
    pub fn new(bm: &'b B, prefetches: &'b PrefetchSet) -> Self {
        Self { bm, prefetches }
    }
}

impl<B> Clone for NonBlocking<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for NonBlocking<'_, B> {}

impl<'b, B: BlockManager> Reader<'b> for NonBlocking<'b, B> {
    type Bm = B;

    fn read(self, block: BlockNr, validator: &'static Validator) -> Result<ReadGuard<'b, B>> {
        let result = self.bm.try_read(block, validator);
        if matches!(result, Err(Error::WouldBlock)) {
            self.prefetches.add(block);
        }
        result
    }

    fn prefetch(self, block: BlockNr) {
        self.bm.prefetch(block);
    }
}
