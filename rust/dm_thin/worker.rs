// SPDX-License-Identifier: GPL-2.0

//! The pool's worker: what one thread at a time does for all devices of a pool.
//!
//! It finishes new mappings, processes the bios that could not be mapped on the spot, and commits when a
//! flush asks for it or a second has passed.

use dm::{
    BlkStatus,
    NoIo, //
};
use kernel::{
    prelude::*,
    sync::Arc,
    time::{
        Delta,
        Instant,
        Monotonic, //
    }, //
};

use crate::{
    block_set::BlockSet,
    cells::Cells,
    insertions::Insertions,
    mapping::{
        Room,
        KEPT_ROOMS,
        LEAST_ROOMS, //
    },
    pass_down::PassDowns,
    per_bio::{
        sort_by_sector,
        ThinBio,
        ThinBios, //
    },
    pool::Pool,
    pool_metadata::{
        Committed,
        Transaction, //
    },
    resting::AfterRest,
    spare::Spare,
    supply::Supply,
    thin::Thin,
    throttle::Round, //
};

/// How often changes are committed without being asked for.
const COMMIT_PERIOD: Delta = Delta::from_secs(1);

/// How many bios of a device are processed between two looks at the throttle.
const BIOS_PER_CHECK: usize = 128;

/// What only the worker knows.
pub(crate) struct Worker {
    pub(crate) cells: Cells,
    /// Rooms for new mappings.
    pub(crate) rooms: Spare<Room>,
    /// Data blocks for the bios that are being processed.
    pub(crate) supply: Supply,
    /// Mappings that are ready.
    pub(crate) insertions: Insertions,
    /// Bios that go on after the next commit: flushes, and writes with FUA.
    pub(crate) after_commit: ThinBios,
    /// Bios that have written their data, and end after the next commit.
    pub(crate) end_after_commit: ThinBios,
    /// Reads that go to external origins at the end of the round.
    pub(crate) to_origin: ThinBios,
    /// Data blocks to be discarded after the next commit.
    pub(crate) pass_down_after_commit: PassDowns,
    /// Data blocks to be discarded when they have rested.
    pub(crate) after_rest: AfterRest,
    /// Data blocks that are being discarded, and must not be allocated meanwhile.
    pub(crate) busy: BlockSet,
    /// Data blocks that are allocated, that nobody will use, and that cannot be freed before the metadata may be changed again.
    pub(crate) unwanted: BlockSet,
    /// Whether writes wait for a block because all free ones rest or are being discarded, and in which transaction that
    /// was so.
    pub(crate) starved: Option<Transaction>,
    /// How many discards for deleted devices are on their way.
    pub(crate) deletions: usize,
    last_commit: Instant<Monotonic>,
}

impl Worker {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            cells: Cells::new(LEAST_ROOMS, KEPT_ROOMS)?,
            rooms: Spare::new(LEAST_ROOMS, KEPT_ROOMS, Room::new)?,
            supply: Supply::new()?,
            insertions: Insertions::new()?,
            after_commit: ThinBios::new(),
            end_after_commit: ThinBios::new(),
            to_origin: ThinBios::new(),
            pass_down_after_commit: PassDowns::default(),
            after_rest: AfterRest::default(),
            busy: BlockSet::new(),
            unwanted: BlockSet::new(),
            starved: None,
            deletions: 0,
            last_commit: Instant::now(),
        })
    }

    /// Whether anybody waits for a commit.
    fn is_commit_wanted(&self) -> bool {
        !(self.after_commit.is_empty()
            && self.end_after_commit.is_empty()
            && self.pass_down_after_commit.is_empty())
    }
}

/// A bio could not be processed yet; here it is again. What it lacks, memory or blocks, is in use for something that
/// wakes the worker when it is done.
pub(crate) struct Postponed(pub(crate) ThinBio);

impl Pool {
    /// One round of work.
    pub(crate) fn work(self: &Arc<Self>) {
        // The worker is on the way of writing memory back, so it must not wait for that.
        let _noio = NoIo::enter();
        let mut worker = self.worker.lock();
        let worker = &mut *worker;
        let mut round = self.throttle.start();

        self.metadata.read().metadata.issue_prefetches();
        for prepared in self.prepared.take() {
            self.complete_mapping(worker, prepared);
            round.update();
        }
        self.insert_mappings(worker);
        self.free_unwanted(worker);
        let mut passed_down = self.passed_down.take();
        while let Some(one) = passed_down.pop() {
            self.finish_pass_down(worker, one, BlkStatus::OK);
        }
        self.let_blocks_rest(worker);
        self.look_for_new_blocks(worker);
        dm::with_plug(|| {
            for thin in self.thins.queue.take() {
                self.process_deferred(worker, &thin, &mut round);
            }
        });
        self.commit_if_due(worker);
        self.let_blocks_rest(worker);
        self.reclaim(worker);
        self.caches.trim();

        // An external origin may be a volume of this pool, whose bios wait where the throttle is applied.
        drop(round);
        if !worker.to_origin.is_empty() {
            dm::with_plug(|| {
                while let Some(bio) = worker.to_origin.pop() {
                    bio.submit();
                }
            });
        }
    }

    /// Processes the bios of `thin` that wait for the worker.
    fn process_deferred(
        self: &Arc<Self>,
        worker: &mut Worker,
        thin: &Arc<Thin>,
        round: &mut Round<'_>,
    ) {
        if thin.requeues() {
            thin.take_deferred().end(BlkStatus::DM_REQUEUE);
            thin.take_retries().end(BlkStatus::DM_REQUEUE);
            return;
        }

        let bios = thin.take_deferred();
        if bios.is_empty() {
            return;
        }
        let mut bios = sort_by_sector(bios);
        worker.supply.plan_for(self, thin, &bios);
        let mut count = 0usize;
        while let Some(bio) = bios.pop() {
            if let Err(Postponed(bio)) = self.process(worker, thin, bio) {
                let mut rest = ThinBios::new();
                rest.push(bio);
                rest.append(&mut bios);
                thin.undo_take(rest);
                break;
            }
            if count.is_multiple_of(BIOS_PER_CHECK) {
                round.update();
                self.metadata.read().metadata.issue_prefetches();
            }
            count = count.wrapping_add(1);
        }
        self.insert_mappings(worker);
        self.end_supply(worker);
    }

    /// Commits if bios wait for it, or if volumes were changed and it is time.
    ///
    /// Blocks that were allocated for mappings that are not ready yet are no reason: it would be in vain for them.
    fn commit_if_due(self: &Arc<Self>, worker: &mut Worker) {
        let is_due = worker.last_commit.elapsed() >= COMMIT_PERIOD
            && self.metadata.read().metadata.changed_this_transaction();
        if !is_due && !worker.is_commit_wanted() {
            return;
        }

        let committed = self.commit();
        if committed.is_ok() {
            worker.last_commit = Instant::now();
        }
        // Somebody else may have committed what some wait for, and this one have failed; or the other way round.
        let is_stable = {
            let pool = self.metadata.read();
            let open = pool.transaction();
            move |transaction| transaction < open
        };
        let mut ended = core::mem::take(&mut worker.end_after_commit);
        while let Some(mut bio) = ended.pop() {
            let status = match is_stable(bio.data_mut().waits_for) {
                true => BlkStatus::OK,
                false => BlkStatus::IOERR,
            };
            bio.end(status);
        }
        let mut pass_down = core::mem::take(&mut worker.pass_down_after_commit);
        while let Some(one) = pass_down.pop() {
            match is_stable(one.stamp().transaction) {
                true => self.pass_down_after_rest(worker, one),
                false => self.finish_pass_down(worker, one, BlkStatus::IOERR),
            }
        }
        let mut goes_on = core::mem::take(&mut worker.after_commit);
        while let Some(mut bio) = goes_on.pop() {
            if !is_stable(bio.data_mut().waits_for) {
                bio.end(BlkStatus::IOERR);
                continue;
            }
            if bio.is_preflush() && matches!(committed, Ok(Committed::Changes)) {
                // The commit has flushed the data device.
                bio.end(BlkStatus::OK);
                continue;
            }
            let Some(thin) = bio.data_mut().thin.clone() else {
                bio.end(BlkStatus::IOERR);
                continue;
            };
            if let Err(Postponed(bio)) = self.process_committed(worker, &thin, bio) {
                let mut one = ThinBios::new();
                one.push(bio);
                thin.undo_take(one);
            }
        }
        // What went on may have been provisioned, and so wait for a commit again.
        self.insert_mappings(worker);
        if worker.is_commit_wanted() {
            self.wake();
        }
    }
}
