// SPDX-License-Identifier: GPL-2.0

//! What the worker does with a bio.
//!
//! The kinds of bios and mappings:
//!
//! | | not mapped | mapped, shared | mapped |
//! | --- | --- | --- | --- |
//! | read | zeroes, or from the external origin | remapped | remapped |
//! | write | a new block is provisioned | sharing is broken | remapped |
//! | write zeroes to a part | nothing (1) | sharing is broken | remapped |
//! | discard, write zeroes to whole blocks (1) | nothing | unmapped: see [`discard`](crate::discard) | unmapped |
//! | flush | goes to the data device, or waits for a commit that flushes it | | |
//!
//! (1): With an external origin, or if new blocks are not zeroed, zeroes are written like other data.
//!
//! A new block is zeroed, or the shared one or what the external [`origin`](crate::origin) has is copied to it,
//! unless the write covers all of it. Sharing is broken like this: the write's block gets a cell, so later
//! writes to it wait; the data is copied to the new block while others go on reading the old one; the new
//! mapping is inserted, which takes this device's reference from the old block; the bios in the cell go on. No
//! commit is needed for that: after a crash the old mapping leads to the old block, which nobody has written to,
//! since a block that was freed is not used again before the commit that makes it free, and not before the
//! reads have ended that were sent to it earlier.

use core::ops::Range;

use dm::{
    kcopyd::Region,
    BlkStatus,
    Op,
    Sector, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};
use thin_metadata::{
    DataBlock,
    Mapping,
    VirtualBlock, //
};

use crate::{
    cells::CellId,
    in_flight::Epoch,
    mapping::{
        NewMapping,
        Preparing,
        Room, //
    },
    mode::Mode,
    per_bio::ThinBio,
    pool::Pool,
    pool_metadata::Transaction,
    supply::NoBlock,
    thin::Thin,
    worker::{
        Postponed,
        Worker, //
    },
    LOG_PREFIX, //
};

/// The commit that a flush, or a write with FUA, asks for.
pub(crate) enum Commit {
    /// None: what it is about is permanent already.
    None,
    /// That of this transaction.
    Of(Transaction),
    /// One that cannot happen any more: changes of the device were lost in an abort.
    Lost,
}

impl Pool {
    /// Processes a bio that was handed to the worker.
    pub(crate) fn process(
        self: &Arc<Self>,
        worker: &mut Worker,
        thin: &Arc<Thin>,
        bio: ThinBio,
    ) -> Result<(), Postponed> {
        if self.mode() == Mode::Fail {
            bio.end(BlkStatus::IOERR);
            return Ok(());
        }
        if bio.len_bytes() == 0 {
            // Flushes concern no block.
            self.remap_and_issue(worker, thin, bio, 0);
            return Ok(());
        }
        if self.unmaps(thin, &bio) {
            return self.process_unmap(worker, thin, bio);
        }
        self.process_data(worker, thin, bio)
    }

    /// Processes a flush, or a write with FUA, whose commit has happened.
    pub(crate) fn process_committed(
        self: &Arc<Self>,
        worker: &mut Worker,
        thin: &Arc<Thin>,
        bio: ThinBio,
    ) -> Result<(), Postponed> {
        if bio.len_bytes() == 0 {
            // Whoever has committed may have flushed the data device before the data were written that it is about.
            self.issue(thin, bio, 0);
            return Ok(());
        }
        // The block may have been unmapped and mapped anew meanwhile, for which another commit is needed.
        self.process_data(worker, thin, bio)
    }

    /// Processes a bio that reads or writes data.
    fn process_data(
        self: &Arc<Self>,
        worker: &mut Worker,
        thin: &Arc<Thin>,
        bio: ThinBio,
    ) -> Result<(), Postponed> {
        let block = self.block_size.block_of(bio.sector());
        let blocks = block..block.saturating_add(1);
        let Some(bio) = worker.cells.wait(thin.id, &blocks, bio) else {
            return Ok(());
        };

        let found = match thin.cache.get(block) {
            Some(found) => Ok(found),
            None => self.settled_metadata().find_block(thin, block, true),
        };
        match found {
            Ok(Some(Mapping {
                block: data,
                shared,
            })) if !shared || bio.is_read() => {
                self.remap_and_issue(worker, thin, bio, data);
                Ok(())
            }
            Ok(None) if bio.is_read() => {
                if let Some(bio) = thin.read_unmapped(bio) {
                    worker.to_origin.push(bio);
                }
                Ok(())
            }
            Ok(None) if bio.op() == Op::WriteZeroes && self.keeps_zeroes_unmapped(thin) => {
                self.end_after_needed_commit(worker, thin, bio);
                Ok(())
            }
            Ok(_) if self.mode() != Mode::Write => {
                self.unserviceable(false, thin, bio);
                Ok(())
            }
            Ok(old) => self.provision(worker, thin, bio, block, old),
            Err(e) => {
                self.lookup_failed(thin, block, e);
                bio.end(BlkStatus::IOERR);
                Ok(())
            }
        }
    }

    /// Tells of a look-up that failed.
    pub(crate) fn lookup_failed(&self, thin: &Thin, block: VirtualBlock, e: thin_metadata::Error) {
        dm::log::err_limited!(
            LOG_PREFIX,
            "{}: look-up of block {block} of thin device {} failed: {e}",
            self.name(),
            thin.id
        );
    }

    /// Gives `block`, which is mapped to the shared block `old` or not at all, a data block of its own for the
    /// write `bio`.
    fn provision(
        self: &Arc<Self>,
        worker: &mut Worker,
        thin: &Arc<Thin>,
        bio: ThinBio,
        block: VirtualBlock,
        old: Option<Mapping>,
    ) -> Result<(), Postponed> {
        let blocks = block..block.saturating_add(1);
        let Some((room, cell)) = self.room(worker, thin, &blocks) else {
            return Err(Postponed(bio));
        };
        let data = match self.supply_data_block(worker) {
            Ok(data) => data,
            Err(e) => {
                // Nothing can wait in a cell that was made just now.
                drop(worker.cells.release(cell));
                worker.rooms.give(room);
                match e {
                    NoBlock::Withheld => self.unserviceable(true, thin, bio),
                    NoBlock::Exhausted => self.unserviceable(false, thin, bio),
                    NoBlock::Failed => bio.end(self.io_error()),
                }
                return Ok(());
            }
        };

        let overwrites = u64::from(bio.len_bytes()) == self.block_size.bytes();
        let sectors = Sector::from(self.block_size.sectors());
        let from_origin = match (&old, &thin.origin) {
            (None, Some(origin)) => {
                let begin = self.block_size.to_sectors(block);
                origin.overlap(begin..begin.saturating_add(sectors))
            }
            _ => 0,
        };
        let zeroing = self.zeroes_new_blocks();
        let zeroes = match old.is_none() && !overwrites && zeroing {
            true => from_origin..sectors,
            false => 0..0,
        };
        let is_zeroed = !zeroes.is_empty();
        let preparing = room.fill(NewMapping {
            thin: thin.clone(),
            block,
            data,
            cell,
            zeroes,
            from_origin,
            breaks_sharing: old.is_some(),
            holder: Some(bio),
        });
        match old {
            Some(_) if overwrites => self.overwrite(preparing),
            Some(old) => {
                let from = Region {
                    dev: &self.data_dev,
                    sector: self.block_size.to_sectors(old.block),
                };
                self.copier.copy(from, sectors, preparing);
            }
            None if from_origin == 0 && !zeroing => {
                self.complete_mapping(worker, preparing.finish(BlkStatus::OK));
            }
            None if overwrites => self.overwrite(preparing),
            None if is_zeroed => self.copier.zero(preparing),
            None => self.copy_from_origin(preparing),
        }
        Ok(())
    }

    /// Room for a mapping of `blocks`, with their cell; `None` if there is no memory, and all that is kept for that is in
    /// use for mappings on their way.
    fn room(
        self: &Arc<Self>,
        worker: &mut Worker,
        thin: &Thin,
        blocks: &Range<VirtualBlock>,
    ) -> Option<(Room, CellId)> {
        let room = worker.rooms.take()?;
        let mut cell = worker.cells.lock(thin.id, blocks);
        if cell.is_err() {
            // Mappings that are ready have cells, too, but wake nobody.
            self.insert_mappings(worker);
            cell = worker.cells.lock(thin.id, blocks);
        }
        match cell {
            Ok(cell) => Some((room, cell)),
            Err(_) => {
                worker.rooms.give(room);
                None
            }
        }
    }

    /// Lets the bio that covers a new block write to it. The bio does not end before the mapping is inserted.
    fn overwrite(self: &Arc<Self>, mut preparing: Preparing) {
        let data = preparing.mapping().data;
        let thin = preparing.mapping().thin.clone();
        match preparing.take_holder() {
            Some(mut bio) => {
                bio.data_mut().wants_commit = bio.is_flush_or_fua();
                bio.data_mut().overwrites = Some(preparing);
                self.issue(&thin, bio, data);
            }
            None => self.finish(preparing.finish(BlkStatus::IOERR)),
        }
    }

    /// Sends a bio to its data block, after a commit if it asks for one.
    pub(crate) fn remap_and_issue(
        self: &Arc<Self>,
        worker: &mut Worker,
        thin: &Thin,
        mut bio: ThinBio,
        data: DataBlock,
    ) {
        match self.needed_commit(thin, &bio) {
            Commit::None => self.issue(thin, bio, data),
            Commit::Of(transaction) => {
                bio.data_mut().waits_for = transaction;
                worker.after_commit.push(bio);
            }
            Commit::Lost => bio.end(BlkStatus::IOERR),
        }
    }

    /// Sends a bio to its data block.
    ///
    /// It enters the set of bios in flight only now, after its mapping was looked up. That is in order as nobody but
    /// the worker removes mappings and turns the set, so the block cannot have rested in between.
    fn issue(self: &Arc<Self>, thin: &Thin, mut bio: ThinBio, data: DataBlock) {
        let epoch = self.enter();
        self.remap(thin, &mut bio, data, epoch);
        bio.submit();
    }

    /// Turns a bio to its data block, having entered the set of bios in flight.
    #[inline]
    pub(crate) fn remap(&self, thin: &Thin, bio: &mut ThinBio, data: DataBlock, epoch: Epoch) {
        let offset = self.block_size.offset_of(bio.sector());
        let sector = self.block_size.to_sectors(data).saturating_add(offset);
        // Straight to the data device, but it counts as I/O of the pool, too.
        bio.count_for(&thin.pool_dev);
        bio.remap(&self.data_dev, sector).epoch = Some(epoch);
    }

    /// Which commit must have happened before `bio` may end.
    pub(crate) fn needed_commit(&self, thin: &Thin, bio: &ThinBio) -> Commit {
        if !(bio.is_flush_or_fua() || bio.data().wants_commit) {
            return Commit::None;
        }
        let pool = self.metadata.read();
        if pool.metadata.thin_aborted_changes(&thin.handle)
            || (pool.may_be_undone() && !thin.cache.is_committed())
        {
            Commit::Lost
        } else if pool.metadata.thin_changed_this_transaction(&thin.handle) {
            Commit::Of(pool.transaction())
        } else {
            Commit::None
        }
    }

    /// Ends a write for which there is no block, or keeps it until there is: until there is more space, or until blocks
    /// are not withheld any more if the worker is `starved`.
    fn unserviceable(self: &Arc<Self>, starved: bool, thin: &Arc<Thin>, bio: ThinBio) {
        match self.unserviceable_status() {
            Some(status) => bio.end(status),
            None => {
                thin.retry_later(bio);
                if thin.requeues() {
                    // Those that wait for space were given back already, but for this one.
                    thin.enqueue();
                    self.wake();
                }
                // The mode may have changed just now, before anybody could see the bio.
                match self.unserviceable_status() {
                    Some(status) => thin.take_retries().end(status),
                    None if self.mode() == Mode::Write && !starved => {
                        thin.retry();
                        self.wake();
                    }
                    None => {}
                }
            }
        }
    }
}
