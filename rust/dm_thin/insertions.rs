// SPDX-License-Identifier: GPL-2.0

//! New mappings on their way into the metadata.
//!
//! The worker collects mappings of a device that are ready, and inserts them together: neighbours end up in the same
//! node of the tree, which is looked for and copied only once.

use dm::BlkStatus;
use kernel::{
    prelude::*,
    sync::Arc, //
};
use thin_metadata::{
    DataBlock,
    Error,
    VirtualBlock, //
};

use crate::{
    mapping::{
        NewMapping,
        Prepared, //
    },
    pool::Pool,
    worker::Worker, //
};

/// The most mappings that are inserted together.
const MAX_MAPPINGS: usize = 64;

/// A mapping whose data block is ready.
struct Ready {
    new: NewMapping,
    /// Whether the bio that caused it has written its data.
    overwritten: bool,
}

/// Mappings of one device that are ready. Both lists have room for [`MAX_MAPPINGS`].
pub(crate) struct Insertions {
    ready: KVec<Option<Ready>>,
    blocks: KVec<(VirtualBlock, DataBlock)>,
}

impl Insertions {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            ready: KVec::with_capacity(MAX_MAPPINGS, GFP_KERNEL)?,
            blocks: KVec::with_capacity(MAX_MAPPINGS, GFP_KERNEL)?,
        })
    }

    /// Whether `new` can join those that are there.
    fn accepts(&self, new: &NewMapping) -> bool {
        match self.ready.first() {
            Some(Some(first)) => {
                self.ready.len() < MAX_MAPPINGS && Arc::ptr_eq(&first.new.thin, &new.thin)
            }
            _ => true,
        }
    }
}

impl Pool {
    /// Takes a mapping in whose data block is ready, or could not be made so. It gets into the metadata no later than with
    /// [`insert_mappings`](Self::insert_mappings).
    pub(crate) fn complete_mapping(self: &Arc<Self>, worker: &mut Worker, prepared: Prepared) {
        let prepared = match prepared.next_step() {
            Ok(preparing) => return self.copy_from_origin(preparing),
            Err(prepared) => prepared,
        };
        let (new, mut status, overwritten) = prepared.into_parts(&mut worker.rooms);
        if status.is_ok() && !self.mode().may_change_metadata() {
            status = self.io_error();
        }
        if !status.is_ok() {
            self.free_unused(worker, new.data);
            return self.give_up(worker, new, status);
        }
        if !worker.insertions.accepts(&new) {
            self.insert_mappings(worker);
        }
        // There is room, as the list was emptied if it could not take the mapping.
        let _ = worker
            .insertions
            .ready
            .push_within_capacity(Some(Ready { new, overwritten }));
    }

    /// Inserts the mappings that were collected, and lets the bios go on that waited for them.
    pub(crate) fn insert_mappings(self: &Arc<Self>, worker: &mut Worker) {
        let mut ready = core::mem::take(&mut worker.insertions.ready);
        let Some(thin) = ready
            .first()
            .and_then(Option::as_ref)
            .map(|ready| ready.new.thin.clone())
        else {
            worker.insertions.ready = ready;
            return;
        };
        // Mostly they are in order already: bios are sent to their blocks in order.
        ready.sort_unstable_by_key(|ready| ready.as_ref().map(|ready| ready.new.block));
        let blocks = &mut worker.insertions.blocks;
        blocks.clear();
        let mut breaks_sharing = false;
        for Ready { new, .. } in ready.iter().flatten() {
            breaks_sharing |= new.breaks_sharing;
            // There is room for as many.
            let _ = blocks.push_within_capacity((new.block, new.data));
        }
        let inserted = self.change("dm_thin_insert_block", |pool| {
            pool.insert_blocks(&thin, blocks, breaks_sharing)
        });
        let status = match inserted {
            Ok(()) => BlkStatus::OK,
            Err(_) => self.io_error(),
        };

        for Ready { new, overwritten } in ready.iter_mut().filter_map(Option::take) {
            if !status.is_ok() {
                if inserted == Err(Error::ReadOnly) {
                    self.free_unused(worker, new.data);
                }
                self.give_up(worker, new, status);
                continue;
            }
            let NewMapping {
                cell, holder, data, ..
            } = new;
            let mut waiting = worker.cells.release(cell);
            match holder {
                Some(bio) if overwritten => self.end_after_needed_commit(worker, &thin, bio),
                Some(bio) => self.remap_and_issue(worker, &thin, bio, data),
                None => {}
            }
            while let Some(bio) = waiting.pop() {
                match self.unmaps(&thin, &bio) {
                    true => thin.defer_again(bio),
                    false => self.remap_and_issue(worker, &thin, bio, data),
                }
            }
        }
        ready.clear();
        worker.insertions.ready = ready;
    }

    /// Ends the bio whose mapping cannot be made. Those that waited for it may fare better.
    fn give_up(&self, worker: &mut Worker, new: NewMapping, status: BlkStatus) {
        let NewMapping {
            thin, cell, holder, ..
        } = new;
        let mut waiting = worker.cells.release(cell);
        if let Some(bio) = holder {
            bio.end(status);
        }
        while let Some(bio) = waiting.pop() {
            thin.defer_again(bio);
        }
    }
}
