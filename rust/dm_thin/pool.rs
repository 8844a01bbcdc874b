// SPDX-License-Identifier: GPL-2.0

//! A pool: its metadata, and all that its thin devices share.

use dm::{
    new_rwsem,
    workqueue::{
        self,
        OnQueue,
        OwnedQueue, //
    },
    BlkStatus,
    Dev,
    MdId,
    RwSemaphore,
    Shrinker, //
};
use kernel::{
    prelude::*,
    sync::{
        new_mutex,
        Arc,
        Mutex, //
    },
    time::msecs_to_jiffies,
    workqueue::{
        impl_has_delayed_work,
        impl_has_work,
        new_delayed_work,
        new_work,
        DelayedWork,
        Work,
        WorkItem, //
    }, //
};
use persistent_data::block::BlockData;
use thin_metadata::{
    format::{
        METADATA_BLOCK_SECTORS,
        SUPERBLOCK_LOCATION, //
    },
    Metadata,
    OpenParams, //
};

use crate::{
    block_manager::BufioManager,
    block_size::BlockSize,
    cache_pages::MappingCaches,
    control::Control,
    copier::Copier,
    hold::Holds,
    in_flight::{
        Epoch,
        InFlight, //
    },
    mapping::{
        Prepared,
        PreparedQueue, //
    },
    mode::Mode,
    pass_down::PassedDown,
    pool_metadata::{
        is_failure,
        CommitEnd,
        Committed,
        GivenUp,
        PoolMetadata, //
    },
    resting::Resting,
    state::Event,
    thins::Thins,
    throttle::Throttle,
    worker::Worker,
    LOG_PREFIX, //
};

/// A pool.
///
/// Lock order: throttle, worker, control, changes, metadata, resting, thins, caches; then the spin locks, of which no two
/// are held at once. The metadata are held for writing only by those who hold changes.
#[pin_data]
pub(crate) struct Pool {
    pub(crate) md: MdId,
    pub(crate) metadata_dev: Dev,
    pub(crate) data_dev: Dev,
    pub(crate) block_size: BlockSize,
    /// Whether thin devices support discards; fixed by the first table.
    pub(crate) discard_enabled: bool,
    /// The device's name in log lines.
    name: KVec<u8>,
    pub(crate) copier: Copier,
    pub(crate) in_flight: InFlight,
    pub(crate) holds: Holds,
    #[pin]
    pub(crate) prepared: PreparedQueue,
    #[pin]
    pub(crate) passed_down: PassedDown,
    #[pin]
    pub(crate) throttle: Throttle,
    #[pin]
    pub(crate) worker: Mutex<Worker>,
    #[pin]
    pub(crate) control: Control,
    /// Held by who changes the metadata; see [`Changes`](crate::pool_metadata::Changes).
    #[pin]
    pub(crate) changes: Mutex<()>,
    #[pin]
    pub(crate) metadata: RwSemaphore<PoolMetadata>,
    /// Data blocks that got free while bios may be on their way to them.
    pub(crate) resting: Arc<Mutex<Resting>>,
    #[pin]
    pub(crate) thins: Thins,
    pub(crate) caches: Arc<MappingCaches>,
    _shrinker: Shrinker<MappingCaches>,
    pub(crate) queue: OwnedQueue,
    #[pin]
    work: Work<Self, WORK>,
    #[pin]
    waker: DelayedWork<Self, WAKER>,
    #[pin]
    no_space_timeout: DelayedWork<Self, NO_SPACE_TIMEOUT>,
}

/// One round of the worker.
const WORK: u64 = 0;
/// Wakes the worker each second, so that it commits.
const WAKER: u64 = 1;
/// Ends the patience with user space when there is no space.
const NO_SPACE_TIMEOUT: u64 = 2;

/// The period of the waker in milliseconds.
const WAKER_PERIOD: u32 = 1000;

impl_has_work! {
    impl HasWork<Self, 0> for Pool { self.work }
}
impl_has_delayed_work! {
    impl HasDelayedWork<Self, 1> for Pool { self.waker }
    impl HasDelayedWork<Self, 2> for Pool { self.no_space_timeout }
}

impl OnQueue for Pool {
    fn queue(&self) -> &OwnedQueue {
        &self.queue
    }
}

impl WorkItem<WORK> for Pool {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.work();
    }
}

impl WorkItem<WAKER> for Pool {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.wake();
        let _ = workqueue::enqueue_delayed::<_, WAKER>(this, msecs_to_jiffies(WAKER_PERIOD));
    }
}

impl WorkItem<NO_SPACE_TIMEOUT> for Pool {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.handle(Event::TimeoutExpired);
    }
}

/// What a pool is made of.
pub(crate) struct PoolParams<'a> {
    pub(crate) md: MdId,
    pub(crate) name: &'a str,
    pub(crate) metadata_dev: Dev,
    pub(crate) data_dev: Dev,
    pub(crate) block_size: BlockSize,
    pub(crate) read_only: bool,
    pub(crate) discard_enabled: bool,
}

/// Opens the metadata on `dev`, or formats it.
#[inline(never)]
fn open_metadata(
    dev: &Dev,
    params: OpenParams,
) -> thin_metadata::Result<KBox<Metadata<BufioManager>>> {
    let bm = BufioManager::new(dev)?;
    let metadata = Metadata::open(bm, params)?;
    KBox::new(metadata, GFP_KERNEL).map_err(|_| persistent_data::Error::NoMemory.into())
}

impl Pool {
    /// Opens the metadata, or formats them if there are none, and makes a pool of them.
    ///
    /// An error comes with the reason that the log shall give.
    pub(crate) fn new(params: PoolParams<'_>) -> Result<Arc<Self>, (&'static CStr, Error)> {
        let PoolParams {
            md,
            name,
            metadata_dev,
            data_dev,
            block_size,
            read_only,
            discard_enabled,
        } = params;

        let metadata = open_metadata(
            &metadata_dev,
            OpenParams {
                data_block_size: block_size.sectors(),
                format: !read_only,
                read_only,
            },
        )
        .map_err(|e| {
            dm::log::err!(
                LOG_PREFIX,
                "{name}: cannot open metadata on {}: {e}",
                metadata_dev.name()
            );
            (c"Error creating metadata object", e.into())
        })?;
        let no_memory = |e| (c"Error allocating memory for pool", e);
        let worker = Worker::new().map_err(no_memory)?;
        let copier =
            Copier::new(block_size).map_err(|e| (c"Error creating pool's kcopyd client", e))?;
        let queue =
            OwnedQueue::ordered(c"dm-thin").map_err(|e| (c"Error creating pool's workqueue", e))?;
        let holds = Holds::new().map_err(no_memory)?;
        let caches = MappingCaches::new().map_err(no_memory)?;
        let resting = Arc::pin_init(
            new_mutex!(Resting::new(), "dm_thin::Pool::resting"),
            GFP_KERNEL,
        )
        .map_err(no_memory)?;
        let shrinker = Shrinker::new(c"dm-thin-mappings", caches.clone()).map_err(no_memory)?;
        let mut owned_name = KVec::new();
        owned_name
            .extend_from_slice(name.as_bytes(), GFP_KERNEL)
            .map_err(|e| no_memory(e.into()))?;

        Arc::pin_init(
            try_pin_init!(Self {
                md,
                metadata_dev,
                data_dev,
                block_size,
                discard_enabled,
                name: owned_name,
                copier,
                in_flight: InFlight::new()?,
                holds,
                prepared <- PreparedQueue::new(),
                passed_down <- PassedDown::new(),
                throttle <- Throttle::new(),
                worker <- new_mutex!(worker, "dm_thin::Pool::worker"),
                control <- Control::new(),
                changes <- new_mutex!((), "dm_thin::Pool::changes"),
                metadata <- new_rwsem!(
                    PoolMetadata::new(metadata, caches.clone(), resting.clone()),
                    "dm_thin::Pool::metadata"
                ),
                resting,
                thins <- Thins::new(),
                caches,
                _shrinker: shrinker,
                queue,
                work <- new_work!("dm_thin::Pool::work"),
                waker <- new_delayed_work!("dm_thin::Pool::waker"),
                no_space_timeout <- new_delayed_work!("dm_thin::Pool::no_space_timeout"),
            }? Error),
            GFP_KERNEL,
        )
        .map_err(|e| (c"Error allocating memory for pool", e))
    }

    /// The device's name in log lines.
    pub(crate) fn name(&self) -> &str {
        core::str::from_utf8(&self.name).unwrap_or("?")
    }

    /// Has the worker look for something to do; from any context.
    pub(crate) fn wake(self: &Arc<Self>) {
        // If it is to run anyway, that is soon enough.
        let _ = self.queue.enqueue::<_, WORK>(self.clone());
    }

    /// Wakes the worker now, and then each second.
    pub(crate) fn start_waker(self: &Arc<Self>) {
        self.wake();
        let _ =
            workqueue::enqueue_delayed::<_, WAKER>(self.clone(), msecs_to_jiffies(WAKER_PERIOD));
    }

    /// Gives user space `seconds` to add space.
    pub(crate) fn give_time_for_space(self: &Arc<Self>, seconds: u32) {
        let delay = msecs_to_jiffies(seconds.saturating_mul(1000));
        let _ = workqueue::enqueue_delayed::<_, NO_SPACE_TIMEOUT>(self.clone(), delay);
    }

    /// Takes back what [`give_time_for_space`](Self::give_time_for_space) gave.
    pub(crate) fn take_time_for_space(self: &Arc<Self>) {
        workqueue::cancel_delayed::<_, NO_SPACE_TIMEOUT>(self);
    }

    /// Does no more work before it is asked for again; waits for what is under way.
    pub(crate) fn stop_work(self: &Arc<Self>) {
        workqueue::cancel_delayed_sync::<_, WAKER>(self);
        workqueue::cancel_delayed_sync::<_, NO_SPACE_TIMEOUT>(self);
        self.queue.flush();
        // Those who finish something now give the worker more to do.
        self.holds.wait();
        self.queue.flush();
    }

    /// Waits for the worker to have done all that there is to do now.
    pub(crate) fn flush_work(self: &Arc<Self>) {
        self.wake();
        self.queue.flush();
    }

    /// Ends all work and commits what is left.
    pub(crate) fn close(self: &Arc<Self>) -> thin_metadata::Result {
        self.stop_work();
        let mut changes = self.changes();
        let mut pool = changes.write();
        let mut flushed = !pool.in_service || !self.mode().may_change_metadata();
        pool.metadata.close(|| {
            flushed = true;
            self.flush_data()
        })?;
        match flushed {
            true => Ok(()),
            false => self.flush_data(),
        }
    }

    /// Makes all that was written to the data device stable.
    pub(crate) fn flush_data(&self) -> thin_metadata::Result {
        self.data_dev
            .flush()
            .map_err(|e| thin_metadata::Error::DataFlush(-e.to_errno()))
    }

    /// A mapping's data block is ready; from any context.
    pub(crate) fn finish(self: &Arc<Self>, prepared: Prepared) {
        self.prepared.push(prepared);
        self.wake();
    }

    /// Commits if only the reserve of metadata blocks is left, while that is still whole. If it gives nothing
    /// back, the pool's mode will tell.
    pub(crate) fn keep_metadata_reserve(self: &Arc<Self>) -> thin_metadata::Result {
        let free = self.metadata.read().metadata.free_metadata_blocks()?;
        match free {
            0 => self.commit().map(drop),
            _ => Ok(()),
        }
    }

    /// Enters a bio into the set of those in flight; any context. Before its mapping is looked up.
    #[inline]
    pub(crate) fn enter(self: &Arc<Self>) -> Epoch {
        self.in_flight.enter(|| self.wake())
    }

    /// A bio that had entered has ended; any context.
    #[inline]
    pub(crate) fn leave(self: &Arc<Self>, epoch: Epoch) {
        self.in_flight.leave(epoch, || self.wake());
    }

    /// Changes the metadata, held for writing. If that fails, the transaction is given up before anybody else gets at
    /// the metadata.
    ///
    /// All errors have been dealt with as far as the pool is concerned.
    pub(crate) fn change<T>(
        self: &Arc<Self>,
        op: &str,
        f: impl FnOnce(&mut PoolMetadata) -> thin_metadata::Result<T>,
    ) -> thin_metadata::Result<T> {
        let (result, given_up) = {
            let mut changes = self.changes();
            let mut pool = changes.write();
            let result = f(&mut pool);
            let given_up = match result {
                Err(e) if is_failure(e) => pool.give_up(),
                _ => None,
            };
            (result, given_up)
        };
        result.inspect_err(|e| self.operation_failed(op, *e, given_up))
    }

    /// Makes all changes permanent.
    ///
    /// An error has been dealt with as far as the pool is concerned.
    pub(crate) fn commit(self: &Arc<Self>) -> thin_metadata::Result<Committed> {
        if !self.mode().may_change_metadata() {
            return Err(thin_metadata::Error::ReadOnly);
        }
        let end = self.changes().commit();
        self.after_commit(end)
    }

    /// Makes permanent what was found when the pool was made: a commit that a crash cut off may have left a superblock that
    /// the device shows, and can still lose. Bios write to blocks that it maps, and a flush of theirs need not ask for a
    /// commit.
    ///
    /// A failure changes the pool's mode, as that of a commit does.
    pub(crate) fn stabilise(self: &Arc<Self>) {
        let mut changes = self.changes();
        let mut pool = changes.write();
        let Err(e) = pool.stabilise() else {
            return;
        };
        if self.mode().may_change_metadata() {
            let given_up = pool.give_up();
            drop(pool);
            drop(changes);
            self.operation_failed("dm_pool_commit_metadata", e, given_up);
        } else {
            dm::log::err!(
                LOG_PREFIX,
                "{}: cannot flush the metadata device: {e}",
                self.name()
            );
        }
    }

    /// Does what a commit asks for; not for those who hold changes.
    pub(crate) fn after_commit(
        self: &Arc<Self>,
        end: CommitEnd,
    ) -> thin_metadata::Result<Committed> {
        let CommitEnd {
            result,
            low,
            given_up,
        } = end;
        if low {
            self.report_low_metadata();
        }
        match result {
            Ok(_) => {
                self.check_metadata_space();
                self.check_data_space();
            }
            Err(e) => self.operation_failed("dm_pool_commit_metadata", e, given_up),
        }
        result
    }

    /// Makes all changes permanent; or, if there are none, finds out whether the devices of a pool in service work.
    ///
    /// A failure has changed the pool's mode, from which user space learns of it.
    pub(crate) fn commit_or_probe(self: &Arc<Self>) {
        if !matches!(self.commit(), Ok(Committed::Nothing)) {
            return;
        }
        // A device tells of a failure once: no commit must miss its own, nor come between the failure and the end of the
        // transaction.
        let mut changes = self.changes();
        let Err(e) = self.probe() else {
            return;
        };
        let given_up = changes.write().give_up();
        drop(changes);
        self.operation_failed("dm_pool_commit_metadata", e, given_up);
    }

    /// Asks the devices for what a commit would ask them for, but writes nothing; for those who hold changes.
    fn probe(&self) -> thin_metadata::Result {
        if !self.metadata.read().in_service {
            return Ok(());
        }
        self.flush_data()?;
        let io_error = |e: Error| persistent_data::Error::Io(-e.to_errno());
        self.metadata_dev.flush().map_err(io_error)?;
        let sector = SUPERBLOCK_LOCATION * u64::from(METADATA_BLOCK_SECTORS);
        // Past the metadata's cache, which keeps the superblock: one that it reads anew is checked anew by the next
        // commit. Without memory, nothing is found out.
        match KBox::<BlockData>::init(pin_init::init_zeroed(), GFP_KERNEL) {
            Ok(mut block) => Ok(self
                .metadata_dev
                .read(sector, &mut block)
                .map_err(io_error)?),
            Err(_) => Ok(()),
        }
    }

    /// Tells user space that the number of free metadata blocks has fallen to the threshold.
    pub(crate) fn report_low_metadata(&self) {
        dm::log::warn!(
            LOG_PREFIX,
            "{}: reached low water mark for metadata device: sending event.",
            self.name()
        );
        self.event();
    }

    /// Looks at the metadata blocks that are free after a commit.
    pub(crate) fn check_metadata_space(self: &Arc<Self>) {
        let free = self.metadata.read().metadata.free_metadata_blocks();
        let reason = match free {
            Ok(0) => "No free metadata blocks",
            Ok(_) if self.mode() == Mode::OutOfMetadataSpace => {
                return self.handle(Event::MetadataSpaceFreed);
            }
            Ok(_) => return,
            Err(_) => "Could not get free metadata blocks",
        };
        if !matches!(self.mode(), Mode::OutOfMetadataSpace | Mode::ReadOnly) {
            dm::log::err!(LOG_PREFIX, "{reason}");
            self.metadata_space_exhausted();
        }
    }

    /// Looks at the data blocks that are free after a commit.
    pub(crate) fn check_data_space(self: &Arc<Self>) {
        if self.mode() != Mode::OutOfDataSpace {
            return;
        }
        let free = self.metadata.read().metadata.free_data_blocks();
        if matches!(free, Ok(free) if free > 0) {
            self.handle(Event::DataSpaceFreed);
        }
    }

    /// Hands the bios that wait for more space to the worker.
    pub(crate) fn retry_bios(self: &Arc<Self>) {
        self.for_each_thin(|thin| thin.retry());
        self.wake();
    }

    /// Ends the bios that wait for more space.
    pub(crate) fn end_retries(&self, status: BlkStatus) {
        self.for_each_thin(|thin| thin.take_retries().end(status));
    }

    /// Has the mode follow a change of the metadata that has failed. If nobody was quicker, `given_up` tells what became
    /// of the transaction; the metadata are read-only by now.
    pub(crate) fn operation_failed(
        self: &Arc<Self>,
        op: &str,
        e: thin_metadata::Error,
        given_up: Option<GivenUp>,
    ) {
        if !is_failure(e) {
            return;
        }
        dm::log::err_limited!(
            LOG_PREFIX,
            "{}: metadata operation '{op}' failed: error = -{}",
            self.name(),
            e.errno()
        );
        dm::log::err_limited!(LOG_PREFIX, "{}: the reason: {e}", self.name());
        if let Some(given_up) = given_up {
            self.transaction_given_up(given_up);
        }
        self.handle(Event::OperationFailed);
    }

    fn transaction_given_up(self: &Arc<Self>, given_up: GivenUp) {
        dm::log::err_limited!(
            LOG_PREFIX,
            "{}: aborting current metadata transaction",
            self.name()
        );
        let GivenUp {
            low,
            rolled_back,
            noted,
        } = given_up;
        if low {
            self.report_low_metadata();
        }
        if !rolled_back {
            dm::log::err!(
                LOG_PREFIX,
                "{}: failed to abort metadata transaction",
                self.name()
            );
            self.handle(Event::RollbackFailed);
        }
        if !noted {
            dm::log::err!(
                LOG_PREFIX,
                "{}: failed to set 'needs_check' flag in metadata",
                self.name()
            );
            self.handle(Event::RollbackFailed);
        }
    }
}
