// SPDX-License-Identifier: GPL-2.0

//! A space map of a device other than the metadata device.

use super::SmRoot;
use crate::{
    block::{
        BlockNr,
        BlockRange, //
    },
    block_manager::Reader,
    error::Result,
    transaction::Transaction,
};

/// Counts references to the blocks of a device.
pub struct DiskSpaceMap {}

#[allow(unused_variables, missing_docs)]
impl DiskSpaceMap {
    pub fn create<'b, T: Transaction<'b>>(tx: &mut T, nr_blocks: BlockNr) -> Result<Self> {
        todo!()
    }
    pub fn open<'b, R: Reader<'b>>(reader: R, root: &SmRoot) -> Result<Self> {
        todo!()
    }
    pub fn nr_blocks(&self) -> BlockNr {
        todo!()
    }
    pub fn nr_free(&self) -> BlockNr {
        todo!()
    }
    pub fn get_count<'b, R: Reader<'b>>(&self, reader: R, block: BlockNr) -> Result<u32> {
        todo!()
    }
    pub fn is_shared<'b, R: Reader<'b>>(&self, reader: R, block: BlockNr) -> Result<bool> {
        todo!()
    }
    pub fn inc<'b, T: Transaction<'b>>(&mut self, tx: &mut T, blocks: BlockRange) -> Result {
        todo!()
    }
    pub fn dec<'b, T: Transaction<'b>>(&mut self, tx: &mut T, blocks: BlockRange) -> Result {
        todo!()
    }
    pub fn set_count<'b, T: Transaction<'b>>(
        &mut self,
        tx: &mut T,
        block: BlockNr,
        count: u32,
    ) -> Result {
        todo!()
    }
    pub fn new_block<'b, T: Transaction<'b>>(&mut self, tx: &mut T) -> Result<BlockNr> {
        todo!()
    }
    pub fn extend<'b, T: Transaction<'b>>(&mut self, tx: &mut T, extra: BlockNr) -> Result {
        todo!()
    }
    pub fn commit<'b, T: Transaction<'b>>(&mut self, tx: &mut T) -> Result {
        todo!()
    }
    pub fn root(&self) -> SmRoot {
        todo!()
    }
}
