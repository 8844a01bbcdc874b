// SPDX-License-Identifier: GPL-2.0

//! The metadata of a pool, with what must change along with them.

use core::ops::Range;

use dm::{
    NoIo,
    ReadGuard,
    WriteNoIoGuard, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        Mutex,
        MutexGuard, //
    }, //
};
use thin_metadata::{
    format::BlockTime,
    DataBlock,
    DeviceId,
    Error,
    Freed,
    Mapping,
    Metadata,
    Result,
    ThinHandle,
    VirtualBlock, //
};

use crate::{
    block_manager::BufioManager,
    block_set::BlockSet,
    cache_pages::MappingCaches,
    mapping_cache::{
        Entry,
        MappingCache,
        Window, //
    },
    pool::Pool,
    reclaim::Reclaim,
    resting::Resting,
    thin::Thin,
    uncommitted::Uncommitted, //
};

/// The number of a transaction, since the pool was made.
///
/// Whoever waits for a commit waits for that of a number: when nothing is left to commit, what they wait for may as well
/// have been rolled back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Transaction(u64);

impl Transaction {
    /// The first one. What is older was stable before there was a pool.
    const FIRST: Self = Self(1);
}

/// What became of the transaction that was given up.
pub(crate) struct GivenUp {
    /// Whether the number of free metadata blocks had fallen to the threshold.
    pub(crate) low: bool,
    /// Whether it was rolled back. If not, nothing can be read any more.
    pub(crate) rolled_back: bool,
    /// Whether the superblock says that the metadata need a check.
    pub(crate) noted: bool,
}

/// The metadata, with what must be known along with them about blocks that were freed, and the caches of mappings.
pub(crate) struct PoolMetadata {
    /// In a place of its own: it is too large for the stack of those who make a pool.
    pub(crate) metadata: KBox<Metadata<BufioManager>>,
    /// What deletions have freed.
    pub(crate) reclaim: Reclaim,
    caches: Arc<MappingCaches>,
    uncommitted: Uncommitted,
    resting: Arc<Mutex<Resting>>,
    /// The transaction that is being put together.
    transaction: Transaction,
    /// Whether a transaction was given up. Nothing is written after that before the metadata are repaired.
    aborted: bool,
    /// Whether what was found could not be made stable. A flush that succeeds later says nothing of what was lost by that.
    unflushed: bool,
    /// Whether a message was run or anything committed since the pool was made.
    pub(crate) in_service: bool,
}

impl PoolMetadata {
    pub(crate) fn new(
        metadata: KBox<Metadata<BufioManager>>,
        caches: Arc<MappingCaches>,
        resting: Arc<Mutex<Resting>>,
    ) -> Self {
        Self {
            metadata,
            reclaim: Reclaim::new(),
            caches,
            uncommitted: Uncommitted::new(),
            resting,
            transaction: Transaction::FIRST,
            aborted: false,
            unflushed: false,
            in_service: false,
        }
    }

    /// The transaction that is being put together.
    pub(crate) fn transaction(&self) -> Transaction {
        self.transaction
    }

    /// Whether all changes of a transaction are permanent.
    pub(crate) fn is_stable(&self, transaction: Transaction) -> bool {
        transaction < self.transaction
    }

    /// Whether a transaction was given up, with all of its changes.
    pub(crate) fn is_lost(&self, transaction: Transaction) -> bool {
        self.aborted && !self.is_stable(transaction)
    }

    /// Whether there is a transaction that a crash may yet decide about: whether the device keeps it is not known, as a
    /// flush has failed.
    pub(crate) fn may_be_undone(&self) -> bool {
        (self.aborted || self.unflushed) && self.metadata.is_unstable()
    }

    /// Makes stable what was found when the pool was made, unless a transaction was given up since.
    pub(crate) fn stabilise(&mut self) -> Result {
        if self.aborted {
            return Ok(());
        }
        if self.unflushed {
            return Err(persistent_data::Error::Io(-EIO.to_errno()).into());
        }
        self.metadata
            .stabilise()
            .inspect_err(|_| self.unflushed = true)
    }

    /// Allows or refuses changes. When a transaction was given up they stay refused.
    pub(crate) fn set_read_only(&self, read_only: bool) {
        self.metadata.set_read_only(read_only || self.aborted);
    }

    /// Where `block` of a device is; `None` if it is not mapped. The cache learns of it, and of the blocks around.
    ///
    /// Unless `can_block`, what is not in memory gives [`Error::WouldBlock`].
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
        self.check_not_aborted()?;
        let mut resting = self.resting.lock();
        if breaks_sharing {
            resting.mappings_removed();
        }
        self.uncommitted.note(&thin.cache);
        self.metadata
            .insert_blocks(&thin.handle, blocks, &mut |freed| {
                resting.freed(&freed.blocks);
            })?;
        drop(resting);
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
        self.check_not_aborted()?;
        let mut resting = self.resting.lock();
        resting.mappings_removed();
        self.uncommitted.note(&thin.cache);
        thin.cache.forget(&blocks);
        self.metadata
            .remove_range(&thin.handle, blocks.start, blocks.end, &mut |one| {
                resting.freed(&one.blocks);
                freed(one);
            })
    }

    /// Deletes device `id`. If `discards`, the blocks that get free are noted for that.
    pub(crate) fn delete_thin(&mut self, id: DeviceId, discards: bool) -> Result {
        let (mut resting, reclaim) = (self.resting.lock(), &mut self.reclaim);
        self.metadata.delete_thin(id, &mut |freed| {
            resting.freed(&freed.blocks);
            if discards {
                reclaim.note(&freed.blocks);
            }
        })
    }

    /// Releases the metadata snapshot.
    pub(crate) fn release_metadata_snap(&mut self) -> Result {
        let mut resting = self.resting.lock();
        self.metadata.release_metadata_snap(&mut |freed| {
            resting.freed(&freed.blocks);
        })
    }

    /// Allocates up to `n` data blocks, of those that do not rest and are not `busy`: `out` gets them in runs. Returns how
    /// many there are, which is not zero.
    pub(crate) fn alloc_data_blocks(
        &mut self,
        n: u32,
        busy: &BlockSet,
        out: &mut dyn FnMut(Range<DataBlock>),
    ) -> Result<u32> {
        let resting = self.resting.lock();
        let mut usable = |block| !busy.contains(block) && !resting.contains(block);
        self.metadata.alloc_data_blocks(n, &mut usable, out)
    }

    /// Whether there may be free data blocks that are withheld from allocation, as they rest or are `busy`.
    pub(crate) fn withholds_blocks(&self, busy: &BlockSet) -> bool {
        !busy.is_empty() || !self.resting.lock().is_empty()
    }

    /// Makes device `id` a snapshot of `origin`.
    pub(crate) fn create_snap(&mut self, id: DeviceId, origin: DeviceId) -> Result {
        self.metadata.create_snap(id, origin)?;
        let time = self.metadata.time();
        self.caches.with(origin, |cache| {
            self.uncommitted.note(cache);
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
                .open(id, time)
                .map_err(|_| persistent_data::Error::NoMemory.into())
        });
        match cache {
            Ok(cache) => {
                if changed {
                    self.uncommitted.note(&cache);
                }
                if self.may_be_undone() {
                    self.uncommitted.note(&cache);
                    self.uncommitted.lost();
                }
                Ok((handle, cache))
            }
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

    /// Undoes what was changed since the last commit, for those who have changed nothing else since.
    ///
    /// If that commit's last flush has failed, the transaction may be there all the same, and with it a snapshot whose
    /// blocks the origin must not write to: what is shared is told by the metadata that were found. If none were, it
    /// stays as it was, and nothing gets cached any more.
    pub(crate) fn undo(&mut self) -> Result {
        self.reclaim.aborted();
        self.caches.for_each(|_, cache| cache.clear());
        self.uncommitted.lost();
        self.metadata.abort()?;
        self.caches.for_each(|id, cache| {
            if let Some(time) = self.metadata.snapshotted_time_of(id) {
                cache.set_snapshotted_time(time);
            }
        });
        Ok(())
    }

    /// Gives up all changes since the last commit, and notes that the metadata need a check. Nothing can be changed any
    /// more; what was committed can be read. `None` if somebody else was quicker.
    ///
    /// To be called with the lock that the failed change was made with: nobody else may see what it has left behind, or
    /// add to it.
    pub(crate) fn give_up(&mut self) -> Option<GivenUp> {
        if core::mem::replace(&mut self.aborted, true) {
            return None;
        }
        let low = self.metadata.threshold_crossed();
        let rolled_back = self.undo().is_ok();
        let noted = self.metadata.set_needs_check().is_ok();
        self.set_read_only(true);
        Some(GivenUp {
            low,
            rolled_back,
            noted,
        })
    }

    /// Makes all changes permanent, without letting anybody read meanwhile. `flush_data` flushes the data device when it
    /// is time for that.
    pub(crate) fn commit(&mut self, flush_data: impl FnOnce() -> Result) -> Result {
        self.check_not_aborted()?;
        self.metadata.commit_with(flush_data)?;
        self.committed();
        Ok(())
    }

    /// Nothing was lost that somebody may still want to commit.
    fn check_not_aborted(&self) -> Result {
        match self.aborted {
            true => Err(Error::ReadOnly),
            false => Ok(()),
        }
    }

    fn committed(&mut self) {
        self.in_service = true;
        self.transaction = Transaction(self.transaction.0.wrapping_add(1));
        self.resting.lock().settle();
        self.reclaim.committed();
        self.uncommitted.committed();
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

/// How a commit has ended.
#[must_use = "the pool's mode may have to change"]
pub(crate) struct CommitEnd {
    pub(crate) result: Result<Committed>,
    /// Whether the number of free metadata blocks has fallen to the threshold.
    pub(crate) low: bool,
    /// If it has failed, and nobody was quicker.
    pub(crate) given_up: Option<GivenUp>,
}

/// Whether an error of a change means that the transaction is to be given up.
pub(crate) fn is_failure(e: Error) -> bool {
    // Nothing was changed then.
    !matches!(e, Error::ReadOnly | Error::NoDataSpace)
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

    /// The metadata for reading, not while a commit has failed and was not rolled back yet: that moment passes.
    ///
    /// For those who may wait for a commit.
    pub(crate) fn settled_metadata(&self) -> ReadGuard<'_, PoolMetadata> {
        let pool = self.metadata.read();
        if !pool.metadata.needs_abort() {
            return pool;
        }
        drop(pool);
        // Whoever has failed rolls back before anybody else has the right to change the metadata.
        drop(self.changes());
        self.metadata.read()
    }
}

impl Changes<'_> {
    /// Holds the metadata for writing.
    pub(crate) fn write(&mut self) -> WriteNoIoGuard<'_, PoolMetadata> {
        self.pool.metadata.write_noio()
    }

    /// Makes all changes permanent. Holds the metadata for writing only while the transaction is put together, not
    /// while the devices write it. If it fails, the transaction is given up.
    ///
    /// [`Error::ReadOnly`] if one was given up before.
    pub(crate) fn commit(&mut self) -> CommitEnd {
        let result = self.commit_in_steps();
        let mut pool = self.write();
        let low = pool.metadata.threshold_crossed();
        let given_up = match result {
            Err(e) if is_failure(e) => pool.give_up(),
            _ => None,
        };
        CommitEnd {
            result,
            low,
            given_up,
        }
    }

    fn commit_in_steps(&mut self) -> Result<Committed> {
        let metadata = &self.pool.metadata;
        let mut pool = self.write();
        pool.check_not_aborted()?;
        if !pool.metadata.prepare_commit()? {
            return Ok(Committed::Nothing);
        }
        drop(pool);
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
