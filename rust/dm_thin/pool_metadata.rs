// SPDX-License-Identifier: GPL-2.0

//! The metadata of a pool, with what must change along with them.

use core::ops::Range;

use dm::{
    NoIo,
    WriteNoIoGuard, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        MutexGuard, //
    }, //
};
use thin_metadata::{
    format::BlockTime,
    DataBlock,
    DeviceId,
    Freed,
    Mapping,
    Metadata,
    Result,
    ThinHandle,
    VirtualBlock, //
};

use crate::{
    block_manager::BufioManager,
    cache_pages::MappingCaches,
    mapping_cache::{
        Entry,
        MappingCache,
        Window, //
    },
    pool::Pool,
    reclaim::Reclaim,
    thin::Thin, //
};

/// The metadata, with what must be known along with them about blocks that were freed, and the caches of mappings.
pub(crate) struct PoolMetadata {
    /// In a place of its own: it is too large for the stack of those who make a pool.
    pub(crate) metadata: KBox<Metadata<BufioManager>>,
    /// What deletions have freed.
    pub(crate) reclaim: Reclaim,
    caches: Arc<MappingCaches>,
    /// Whether mappings that bios may still be using were removed in this transaction.
    blocks_freed: bool,
    /// Whether that was so in a transaction that is committed: the data blocks are free now, but must not be
    /// used again before those bios have ended.
    pub(crate) blocks_in_use: bool,
    /// Whether a transaction was aborted. Nothing is written after that before the metadata are repaired.
    pub(crate) aborted: bool,
}

impl PoolMetadata {
    pub(crate) fn new(metadata: KBox<Metadata<BufioManager>>, caches: Arc<MappingCaches>) -> Self {
        Self {
            metadata,
            reclaim: Reclaim::new(),
            caches,
            blocks_freed: false,
            blocks_in_use: false,
            aborted: false,
        }
    }

    /// Where `block` of a device is; `None` if it is not mapped. The cache learns of it, and of the blocks around.
    ///
    /// Unless `can_block`, what is not in memory gives [`thin_metadata::Error::WouldBlock`].
    pub(crate) fn find_block(
        &self,
        thin: &Thin,
        block: VirtualBlock,
        can_block: bool,
    ) -> Result<Option<Mapping>> {
        let mut window = Window::around(block);
        let blocks = window.blocks();
        let found = self.metadata.find_block_near(
            &thin.handle,
            block,
            can_block,
            blocks,
            |block, value| window.add(block, value),
        );
        match found {
            Ok(Some(_)) => {
                self.caches
                    .put_found(&thin.cache, thin.id, block, window.entries());
            }
            // Who asks may be about to have it mapped.
            Ok(None) => {
                window.add_unmapped(block);
                self.caches.put(&thin.cache, window.entries());
            }
            Err(_) => {}
        }
        found
    }

    /// Maps blocks of a device, in ascending order, each to the data block beside it, whose reference is taken over.
    pub(crate) fn insert_blocks(
        &mut self,
        thin: &Thin,
        blocks: &[(VirtualBlock, DataBlock)],
        breaks_sharing: bool,
    ) -> Result {
        if breaks_sharing {
            self.blocks_freed = true;
        }
        thin.cache.set_uncommitted();
        self.metadata
            .insert_blocks(&thin.handle, blocks, &mut |_| ())?;
        let time = self.metadata.time();
        let entries = blocks.iter().filter_map(|(block, data)| {
            let value = BlockTime::new(*data, time)?;
            Some(Entry::mapped(*block, value))
        });
        self.caches.put(&thin.cache, entries);
        Ok(())
    }

    /// Removes the mappings of a device within `blocks`. `freed` is told of the data blocks that nothing refers to any
    /// more.
    pub(crate) fn remove_range(
        &mut self,
        thin: &Thin,
        blocks: Range<VirtualBlock>,
        freed: &mut dyn FnMut(Freed),
    ) -> Result {
        self.blocks_freed = true;
        thin.cache.set_uncommitted();
        thin.cache.forget(&blocks);
        self.metadata
            .remove_range(&thin.handle, blocks.start, blocks.end, freed)
    }

    /// Makes device `id` a snapshot of `origin`.
    pub(crate) fn create_snap(&mut self, id: DeviceId, origin: DeviceId) -> Result {
        self.metadata.create_snap(id, origin)?;
        let time = self.metadata.time();
        self.caches.with(origin, |cache| {
            cache.set_uncommitted();
            cache.set_snapshotted_time(time);
        });
        Ok(())
    }

    /// Opens device `id`, with its cache.
    pub(crate) fn open_thin(&mut self, id: DeviceId) -> Result<(ThinHandle, Arc<MappingCache>)> {
        let handle = self.metadata.open_thin(id)?;
        let changed = self.metadata.thin_changed_this_transaction(&handle);
        let cache = self.metadata.snapshotted_time(&handle).and_then(|time| {
            self.caches
                .open(id, time, changed)
                .map_err(|_| persistent_data::Error::NoMemory.into())
        });
        match cache {
            Ok(cache) => Ok((handle, cache)),
            Err(e) => {
                self.metadata.close_thin(&handle);
                Err(e)
            }
        }
    }

    /// Closes a device that was opened.
    pub(crate) fn close_thin(&mut self, handle: &ThinHandle) {
        self.metadata.close_thin(handle);
        self.caches.close(handle.id());
    }

    /// Gives up all changes since the last commit.
    pub(crate) fn abort(&mut self) -> Result {
        self.blocks_freed = false;
        self.reclaim.aborted();
        self.caches.for_each(|cache| {
            cache.clear();
            cache.lose_uncommitted();
        });
        self.metadata.abort()
    }

    /// Makes all changes permanent, without letting anybody read meanwhile. `flush_data` flushes the data device when it
    /// is time for that.
    pub(crate) fn commit(&mut self, flush_data: impl FnOnce() -> Result) -> Result {
        self.metadata.commit_with(flush_data)?;
        self.committed();
        Ok(())
    }

    fn committed(&mut self) {
        self.blocks_in_use |= core::mem::take(&mut self.blocks_freed);
        self.reclaim.committed();
        self.caches.for_each(|cache| cache.set_committed());
    }
}

/// What a commit has made permanent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Committed {
    /// Nothing: there were no changes, or somebody else's commit was quicker. The data device was not flushed.
    Nothing,
    /// All changes. The data device was flushed on the way.
    Changes,
}

/// The right to change a pool's metadata.
///
/// Others look mappings up in the meantime, unless the metadata are held for writing.
pub(crate) struct Changes<'a> {
    pool: &'a Pool,
    _noio: NoIo,
    _turn: MutexGuard<'a, ()>,
}

impl Pool {
    /// Waits for the right to change the metadata.
    pub(crate) fn changes(&self) -> Changes<'_> {
        let turn = self.changes.lock();
        Changes {
            pool: self,
            _noio: NoIo::enter(),
            _turn: turn,
        }
    }
}

impl Changes<'_> {
    /// Holds the metadata for writing.
    pub(crate) fn write(&mut self) -> WriteNoIoGuard<'_, PoolMetadata> {
        self.pool.metadata.write_noio()
    }

    /// Makes all changes permanent. Holds the metadata for writing only while the transaction is put together, not
    /// while the devices write it.
    ///
    /// If it fails, the transaction must be aborted.
    pub(crate) fn commit(&mut self) -> Result<Committed> {
        let metadata = &self.pool.metadata;
        if !self.write().metadata.prepare_commit()? {
            return Ok(Committed::Nothing);
        }
        let flushed = metadata.read().metadata.flush()?;
        self.pool.flush_data()?;
        self.write().metadata.write_superblock(flushed)?;
        let flushed = metadata.read().metadata.flush()?;
        let mut pool = self.write();
        pool.metadata.finish_commit(flushed)?;
        pool.committed();
        Ok(Committed::Changes)
    }
}
