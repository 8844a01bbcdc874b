// SPDX-License-Identifier: GPL-2.0

//! What a data structure needs in order to change blocks.

use crate::{
    block::{
        BlockNr,
        BlockRange,
        Validator, //
    },
    block_manager::{
        BlockManager,
        WriteGuard, //
    },
    error::Result,
};

/// A block that may be written to in this transaction.
pub struct Shadow<'b, B: BlockManager + 'b> {
    /// The block, at its new location.
    pub guard: WriteGuard<'b, B>,
    /// Whether the original has other owners, who keep it: then there is one more reference to everything
    /// that the block refers to, and the caller must count it.
    pub was_shared: bool,
}

/// The only way to a writable block.
///
/// A transaction never changes a block that the last committed one may still refer to: it copies the block
/// to a free place (a *shadow*) and changes the copy. Each block has a reference count; a block whose count
/// drops to zero becomes free when the transaction is committed, not before.
///
/// After any error but [`Error::NoData`](crate::Error::NoData) from an operation that changes, the
/// transaction's state is undefined and it must be rolled back.
///
/// Two things implement it: [`Tx`](crate::transaction_manager::Tx) for everybody, and the metadata space
/// map's own [`AllocTx`](crate::space_map::metadata::AllocTx), on whose blocks the former keeps its
/// counts. The latter only queues changes of reference counts, so that no recursion occurs.
///
/// `'b` is the lifetime of the block manager: guards outlive the transaction's borrow.
pub trait Transaction<'b> {
    /// The block manager that the blocks are in.
    type Bm: BlockManager + 'b;

    /// The block manager.
    fn bm(&self) -> &'b Self::Bm;

    /// Allocates a zeroed block with a reference count of one.
    fn new_block(&mut self, validator: &'static Validator) -> Result<WriteGuard<'b, Self::Bm>>;

    /// Makes a block writable.
    ///
    /// If it was allocated in this transaction and has one owner, it is written in place. Otherwise it is
    /// copied to a new block with a reference count of one, and the original loses one reference.
    fn shadow(
        &mut self,
        block: BlockNr,
        validator: &'static Validator,
    ) -> Result<Shadow<'b, Self::Bm>>;

    /// Adds one reference to each block of a range.
    fn inc(&mut self, blocks: BlockRange) -> Result;

    /// Takes one reference from each block of a range.
    fn dec(&mut self, blocks: BlockRange) -> Result;

    /// The reference count of a block.
    fn ref_count(&self, block: BlockNr) -> Result<u32>;
}
