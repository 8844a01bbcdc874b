// SPDX-License-Identifier: GPL-2.0

//! A transaction on a metadata device.

pub use crate::prefetch_set::PrefetchSet;

use crate::{
    block::{
        BlockNr,
        BlockRange,
        Validator, //
    },
    block_manager::{
        BlockManager,
        ReadGuard,
        Reader,
        WriteGuard, //
    },
    error::{
        Error,
        Result, //
    },
    space_map::SmRoot,
    transaction::{
        Shadow,
        Transaction, //
    },
};

/// The state of transactions.
pub struct TransactionManager {
    prefetches: PrefetchSet,
}

#[allow(unused_variables, missing_docs)]
impl TransactionManager {
    pub fn create<B: BlockManager>(bm: &B, superblock: BlockNr) -> Result<Self> {
        todo!()
    }
    pub fn open<B: BlockManager>(bm: &B, root: &SmRoot) -> Result<Self> {
        todo!()
    }
    pub fn tx<'t, 'b, B: BlockManager>(&'t mut self, bm: &'b B) -> Tx<'t, 'b, B> {
        Tx { bm, tm: self }
    }
    pub fn nr_blocks(&self) -> BlockNr {
        todo!()
    }
    pub fn nr_free(&self) -> BlockNr {
        todo!()
    }
    pub fn ref_count<B: BlockManager>(&self, bm: &B, block: BlockNr) -> Result<u32> {
        todo!()
    }
    pub fn extend<B: BlockManager>(&mut self, bm: &B, extra: BlockNr) -> Result {
        todo!()
    }
    pub fn pre_commit<B: BlockManager>(&mut self, bm: &B) -> Result<SmRoot> {
        todo!()
    }
    pub fn commit<'b, B: BlockManager>(
        &mut self,
        bm: &'b B,
        superblock: WriteGuard<'b, B>,
    ) -> Result {
        todo!()
    }
    pub fn set_threshold(&mut self, blocks: BlockNr) {
        todo!()
    }
    pub fn threshold_crossed(&mut self) -> bool {
        todo!()
    }
    pub fn prefetches(&self) -> &PrefetchSet {
        &self.prefetches
    }
}

/// A transaction under way.
pub struct Tx<'t, 'b, B: BlockManager> {
    bm: &'b B,
    #[allow(dead_code)]
    tm: &'t mut TransactionManager,
}

#[allow(unused_variables)]
impl<'b, B: BlockManager> Transaction<'b> for Tx<'_, 'b, B> {
    type Bm = B;

    fn bm(&self) -> &'b B {
        self.bm
    }
    fn new_block(&mut self, validator: &'static Validator) -> Result<WriteGuard<'b, B>> {
        todo!()
    }
    fn shadow(&mut self, block: BlockNr, validator: &'static Validator) -> Result<Shadow<'b, B>> {
        todo!()
    }
    fn inc(&mut self, blocks: BlockRange) -> Result {
        todo!()
    }
    fn dec(&mut self, blocks: BlockRange) -> Result {
        todo!()
    }
    fn ref_count(&self, block: BlockNr) -> Result<u32> {
        todo!()
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
        let r = self.bm.try_read(block, validator);
        if matches!(r, Err(Error::WouldBlock)) {
            self.prefetches.add(block);
        }
        r
    }

    fn prefetch(self, block: BlockNr) {
        self.bm.prefetch(block);
    }
}
