// SPDX-License-Identifier: GPL-2.0

//! The metadata device's own space map: free blocks for everybody, itself included.
//!
//! The counts of the metadata device's blocks live in metadata blocks, so to count a new block may take
//! another new block. What would be a recursion is cut in two here:
//!
//! - The [`Allocator`] finds free blocks by what was *committed*: a copy of the index as of the last commit
//!   and the bitmaps it names, which the transaction leaves alone. It never looks at the counts that are just
//!   being changed. Each block is a candidate once in a transaction, so a block cannot be handed out twice,
//!   and one that is freed does not come back before the next commit.
//! - The counts as they will be are changed with an [`AllocTx`] as their transaction. It hands out blocks from
//!   the allocator, and *queues* what that does to reference counts.
//!
//! The [`TransactionManager`](crate::transaction_manager::TransactionManager) owns both. After each operation
//! it applies the queue to the counts until it is empty. This comes to an end: a change that is applied queues
//! others only when it copies or makes blocks, a block is copied once in a transaction, and there is a limited
//! number of free blocks.
//!
//! For the copies to be made once, the allocator remembers them in a set. For other blocks it does no harm if
//! the set cannot grow, as a second copy is as good as the first. For the blocks of the space map itself it
//! would: each copy is counted, and to count would mean to copy again. So there it is an error.

use super::{
    candidates::Candidates,
    counts::Counts,
    index::Entry,
    index_block::{
        BlockIndex,
        MAX_ENTRIES, //
    },
    pending::{
        Change,
        Pending, //
    },
    place,
    shadow_set::ShadowSet,
    threshold::Threshold, //
};
use crate::{
    block::{
        BlockNr,
        BlockRange,
        Validator, //
    },
    block_manager::{
        BlockManager,
        Guard,
        WriteGuard, //
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
    transaction::{
        Shadow,
        Transaction, //
    },
};

/// How many free blocks are looked for at a time.
const MAX_KNOWN_FREE: u32 = 64;

/// The counts of the metadata device's blocks.
pub(crate) type MetadataCounts = Counts<BlockIndex>;

/// Hands out blocks of the metadata device.
///
/// The superblock's own block is none of them, whatever the bitmaps say: it is counted when the space map is made,
/// and no reference to it is taken or given up after that.
pub struct Allocator {
    superblock: BlockNr,
    /// The index as of the last commit.
    committed: Vec<Entry>,
    nr_committed: BlockNr,
    nr_committed_free: BlockNr,
    /// How many of the committed free blocks were handed out in this transaction.
    nr_handed_out: BlockNr,
    candidates: Candidates,
    /// The next candidates as far as they are known to be free, so that they need not be looked at again.
    next: BlockRange,
    /// The blocks that were handed out in this transaction.
    shadows: ShadowSet,
    pending: Pending,
    threshold: Threshold,
}

impl Allocator {
    /// Hands out nothing before blocks are added or counts committed; the first one will be `begin`, and none ever
    /// `superblock`.
    pub(crate) fn new(superblock: BlockNr, begin: BlockNr) -> Result<Self> {
        Ok(Self {
            superblock,
            // Room for all entries, so that a commit cannot fail for want of memory.
            committed: Vec::try_with_room(MAX_ENTRIES)?,
            nr_committed: 0,
            nr_committed_free: 0,
            nr_handed_out: 0,
            candidates: Candidates::leaving_out(superblock, begin)?,
            next: 0..0,
            shadows: ShadowSet::new(),
            pending: Pending::new(),
            threshold: Threshold::new(),
        })
    }

    /// The block that is never handed out.
    pub(crate) fn superblock(&self) -> BlockNr {
        self.superblock
    }

    /// Adds new, free blocks at the end of the device.
    pub(crate) fn extend(&mut self, blocks: BlockRange) -> Result {
        // They are the next ones now.
        self.next = 0..0;
        self.candidates.add(blocks)
    }

    /// Takes over counts that were committed: all that is free now may be handed out from now on.
    pub(crate) fn take_over(&mut self, counts: &MetadataCounts) -> Result {
        self.committed.clear();
        for entry in counts.index.entries() {
            self.committed.try_push(*entry)?;
        }
        self.nr_committed = counts.nr_blocks();
        self.nr_committed_free = counts.nr_blocks().saturating_sub(counts.nr_allocated());
        self.nr_handed_out = 0;
        self.next = 0..0;
        self.candidates.restart(counts.nr_blocks())
    }

    /// Forgets which blocks may be written in place.
    pub(crate) fn forget_shadows(&mut self) {
        self.shadows.clear();
    }

    /// The number of blocks that can be handed out before the next commit, blocks that were added since the
    /// last one not included.
    pub(crate) fn nr_free(&self) -> BlockNr {
        self.nr_committed_free.saturating_sub(self.nr_handed_out)
    }

    /// The edge-triggered watch over [`nr_free`](Self::nr_free).
    pub(crate) fn threshold(&mut self) -> &mut Threshold {
        &mut self.threshold
    }

    /// Whether a block was handed out in this transaction and can be written in place by its only owner.
    ///
    /// May give false for such a block when memory is short.
    pub(crate) fn is_shadow(&self, block: BlockNr) -> bool {
        self.shadows.contains(block)
    }

    /// As [`is_shadow`](Self::is_shadow), for a block that is known to have one owner only.
    pub(crate) fn is_sole_shadow(&self, block: BlockNr) -> bool {
        self.shadows.contains_sole(block)
    }

    /// Takes notice that each block of a range gets one more owner.
    pub(crate) fn add_references(&mut self, blocks: BlockRange) {
        for block in blocks {
            self.shadows.add_reference(block);
        }
    }

    /// Remembers a block that was handed out.
    pub(crate) fn insert_shadow(&mut self, block: BlockNr) -> Result {
        self.shadows.insert(block)
    }

    /// Queues a change of counts, none of which may be the superblock's: nothing that is counted refers to it.
    pub(crate) fn queue(&mut self, change: Change, blocks: BlockRange) -> Result {
        if blocks.contains(&self.superblock) {
            return Err(Error::Corrupt(self.superblock, Corruption::Reference));
        }
        self.pending.push(change, blocks)
    }

    /// Queues the one reference that there is to the superblock.
    pub(crate) fn queue_superblock(&mut self) -> Result {
        self.pending.push(Change::Inc, one(self.superblock)?)
    }

    /// The changes of counts that wait.
    pub(crate) fn pending(&mut self) -> &mut Pending {
        &mut self.pending
    }

    /// Finds a free block, whose count is still to be increased, and makes it a zeroed, writable one.
    pub(crate) fn hand_out<'b, B: BlockManager>(
        &mut self,
        bm: &'b B,
        validator: &'static Validator,
    ) -> Result<WriteGuard<'b, B>> {
        self.hand_out_as(bm, |block| bm.write_zero(block, validator))
    }

    /// Finds a free block, whose count is still to be increased, and makes it a writable one by `write`.
    fn hand_out_as<'b, B: BlockManager>(
        &mut self,
        bm: &'b B,
        write: impl FnOnce(BlockNr) -> Result<WriteGuard<'b, B>>,
    ) -> Result<WriteGuard<'b, B>> {
        let block = self.find(bm)?;
        let guard = write(block)?;
        self.candidates.take(block);
        self.next.start = block + 1;
        if block < self.nr_committed {
            self.nr_handed_out += 1;
        }
        self.threshold.update(self.nr_free());
        Ok(guard)
    }

    /// Copies a block to a free one. The counts of both are still to be changed.
    pub(crate) fn copy<'b, B: BlockManager>(
        &mut self,
        bm: &'b B,
        block: BlockNr,
        validator: &'static Validator,
    ) -> Result<WriteGuard<'b, B>> {
        let original = bm.read(block, validator)?;
        self.hand_out_as(bm, |block| bm.write_copy(block, validator, &original))
    }

    /// Queues the changes of counts that a copy of `original` to `copy` makes.
    pub(crate) fn queue_copy(&mut self, original: BlockNr, copy: BlockNr) -> Result {
        self.queue(Change::Inc, one(copy)?)?;
        self.queue(Change::Dec, one(original)?)
    }

    fn find<B: BlockManager>(&mut self, bm: &B) -> Result<BlockNr> {
        if !self.next.is_empty() {
            return Ok(self.next.start);
        }
        while let Some(blocks) = self.candidates.current() {
            if blocks.start >= self.nr_committed {
                // Added in this transaction: none was in use before.
                return Ok(blocks.start);
            }
            let (i, _) = place(blocks.start);
            let end_of_bitmap = super::first_of_bitmap(i + 1).min(blocks.end);
            let entry = usize::try_from(i)
                .ok()
                .and_then(|i| self.committed.get(i))
                .ok_or(Error::OutOfBounds(blocks.start))?;
            let in_bitmap = blocks.start..end_of_bitmap;
            match MetadataCounts::find_free(bm, i, entry, None, &in_bitmap, MAX_KNOWN_FREE)? {
                Some(run) => {
                    self.next = run;
                    return Ok(self.next.start);
                }
                None => self.candidates.skip_to(end_of_bitmap),
            }
        }
        Err(Error::NoSpace)
    }
}

/// The range of a single block.
pub(crate) fn one(block: BlockNr) -> Result<BlockRange> {
    Ok(block..block.checked_add(1).ok_or(Error::OutOfBounds(block))?)
}

/// The transaction in which the counts of the metadata device's blocks are changed.
///
/// Its blocks belong to the space map alone, so they never are shared.
pub struct AllocTx<'a, 'b, B: BlockManager> {
    bm: &'b B,
    alloc: &'a mut Allocator,
}

impl<'a, 'b, B: BlockManager> AllocTx<'a, 'b, B> {
    /// A transaction that takes blocks from `alloc`.
    pub(crate) fn new(bm: &'b B, alloc: &'a mut Allocator) -> Self {
        Self { bm, alloc }
    }
}

impl<'b, B: BlockManager> Transaction<'b> for AllocTx<'_, 'b, B> {
    type Bm = B;

    fn bm(&self) -> &'b B {
        self.bm
    }

    fn new_block(&mut self, validator: &'static Validator) -> Result<WriteGuard<'b, B>> {
        let guard = self.alloc.hand_out(self.bm, validator)?;
        self.alloc.insert_shadow(guard.location())?;
        self.alloc.queue(Change::Inc, one(guard.location())?)?;
        Ok(guard)
    }

    fn shadow(&mut self, block: BlockNr, validator: &'static Validator) -> Result<Shadow<'b, B>> {
        let guard = if self.alloc.is_shadow(block) {
            self.bm.write(block, validator)?
        } else {
            let guard = self.alloc.copy(self.bm, block, validator)?;
            self.alloc.insert_shadow(guard.location())?;
            self.alloc.queue_copy(block, guard.location())?;
            guard
        };
        Ok(Shadow {
            guard,
            was_shared: false,
        })
    }

    fn inc(&mut self, blocks: BlockRange) -> Result {
        self.alloc.queue(Change::Inc, blocks)
    }

    fn dec(&mut self, blocks: BlockRange) -> Result {
        self.alloc.queue(Change::Dec, blocks)
    }

    /// One: see the type's description.
    fn ref_count(&self, _: BlockNr) -> Result<u32> {
        Ok(1)
    }
}
