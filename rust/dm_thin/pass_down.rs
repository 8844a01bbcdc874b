// SPDX-License-Identifier: GPL-2.0

//! Discards of data blocks that nobody uses any more.
//!
//! They belong to blocks that are free in the metadata. The worker keeps those blocks in its set `busy`, from which
//! it allocates nothing, from the moment that they are meant to be discarded until the discards have ended: others
//! may commit in between. No block is in two of these at a time.

use core::ops::Range;

use dm::{
    BlkStatus,
    Dev,
    Discard,
    DiscardDone, //
};
use kernel::{
    alloc::flags::{
        __GFP_NOWARN, //
        GFP_NOWAIT,
    },
    prelude::*,
    sync::{
        new_spinlock_irq,
        Arc,
        SpinLockIrq, //
    }, //
};
use thin_metadata::DataBlock;

use crate::{
    block_set::BlockSet,
    hold::PoolHold,
    per_bio::ThinBio,
    pool::Pool,
    pool_metadata::Transaction,
    resting::Rest,
    worker::Worker, //
};

/// Data blocks that may be discarded.
pub(crate) struct Ranges(KVVec<Range<DataBlock>>);

impl Ranges {
    /// No blocks yet.
    pub(crate) fn new() -> Self {
        Self(KVVec::new())
    }

    /// Makes room for one more range. Fails with [`ENOMEM`], which is not waited for.
    pub(crate) fn make_room(&mut self) -> Result {
        Ok(self.0.reserve(1, GFP_NOWAIT | __GFP_NOWARN)?)
    }

    /// Adds blocks, or leaves them alone if there is no memory: their discard would only have been a favour.
    pub(crate) fn add(&mut self, blocks: Range<DataBlock>) {
        match self.0.last_mut() {
            Some(last) if last.end == blocks.start => last.end = blocks.end,
            _ => {
                let _ = self.0.push(blocks, GFP_NOWAIT | __GFP_NOWARN);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Data blocks to be discarded together.
pub(crate) struct PassDown {
    /// While the discards are on their way.
    hold: Option<PoolHold>,
    /// Where the data blocks are.
    dev: Dev,
    ranges: Ranges,
    /// When they were unmapped.
    stamp: Stamp,
    /// Why they are discarded.
    cause: Cause,
    next: Option<KBox<PassDown>>,
}

/// When data blocks were unmapped that are to be discarded. The default is long ago.
#[derive(Clone, Copy, Default)]
pub(crate) struct Stamp {
    /// The transaction that has it.
    pub(crate) transaction: Transaction,
    /// The generation after which no bio is on its way to them that could do harm or be harmed.
    pub(crate) rest: Rest,
}

/// Why data blocks are discarded.
pub(crate) enum Cause {
    /// The bio that asked for it, which ends with it.
    Bio(ThinBio),
    /// The deletion of a thin device. The worker counts those that are on their way.
    Deletion,
}

impl PassDown {
    /// Blocks to be discarded on `dev`. Gives `cause` back if there is no memory, which is not waited for.
    pub(crate) fn new(dev: &Dev, cause: Cause, ranges: Ranges) -> Result<KBox<Self>, Cause> {
        match KBox::new_uninit(GFP_NOWAIT | __GFP_NOWARN) {
            Ok(room) => Ok(KBox::write(
                room,
                Self {
                    hold: None,
                    dev: dev.clone(),
                    ranges,
                    stamp: Stamp::default(),
                    cause,
                    next: None,
                },
            )),
            Err(_) => Err(cause),
        }
    }

    /// Adds blocks. See [`Ranges::add`].
    pub(crate) fn add(&mut self, blocks: Range<DataBlock>) {
        self.ranges.add(blocks);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Notes when the blocks were unmapped, all of them by then.
    pub(crate) fn set_stamp(&mut self, stamp: Stamp) {
        self.stamp = stamp;
    }

    /// When the blocks were unmapped.
    pub(crate) fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Adds the blocks to `busy`; leaves out those for which there is no memory.
    pub(crate) fn keep_from_use(&mut self, busy: &mut BlockSet) {
        self.ranges.0.retain(|blocks| {
            let kept = busy.insert(blocks).is_ok();
            if !kept {
                busy.remove(blocks);
            }
            kept
        });
    }

    /// Takes the blocks out of `busy`.
    pub(crate) fn release(&self, busy: &mut BlockSet) {
        for blocks in &self.ranges.0 {
            busy.remove(blocks);
        }
    }

    /// What caused it.
    pub(crate) fn into_cause(self: KBox<Self>) -> Cause {
        KBox::into_inner(self).cause
    }
}

impl DiscardDone for PassDown {
    fn done(mut self: KBox<Self>, _: BlkStatus) {
        // Whether the device could discard does not matter: the blocks are free.
        if let Some(pool) = self.hold.take() {
            pool.passed_down.list.lock().push(self);
            pool.wake();
        }
    }
}

/// A list.
#[derive(Default)]
pub(crate) struct PassDowns(Option<KBox<PassDown>>);

impl PassDowns {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn push(&mut self, mut one: KBox<PassDown>) {
        one.next = self.0.take();
        self.0 = Some(one);
    }

    pub(crate) fn pop(&mut self) -> Option<KBox<PassDown>> {
        let mut one = self.0.take()?;
        self.0 = one.next.take();
        Some(one)
    }
}

/// Those whose discards have ended, for the worker.
#[pin_data]
pub(crate) struct PassedDown {
    #[pin]
    list: SpinLockIrq<PassDowns>,
}

impl PassedDown {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            list <- new_spinlock_irq!(PassDowns::default(), "dm_thin::PassedDown"),
        })
    }

    pub(crate) fn take(&self) -> PassDowns {
        core::mem::take(&mut self.list.lock())
    }
}

impl Pool {
    /// Discards what is in `one`, which is kept from use already, once it has rested.
    pub(crate) fn pass_down_after_rest(self: &Arc<Self>, worker: &mut Worker, one: KBox<PassDown>) {
        let rest = one.stamp.rest;
        let (is_over, is_closed) = {
            let resting = self.resting.lock();
            (resting.is_over(rest), resting.is_closed(rest))
        };
        match is_closed {
            _ if is_over => self.pass_down(worker, one),
            true => worker.after_rest.closed.push(one),
            false => worker.after_rest.open.push(one),
        }
    }

    /// Discards what is in `one`, which is kept from use already and has rested. It does not if the transaction was given
    /// up in which the blocks were unmapped.
    pub(crate) fn pass_down(self: &Arc<Self>, worker: &mut Worker, one: KBox<PassDown>) {
        if self.metadata.read().is_lost(one.stamp.transaction) {
            return self.finish_pass_down(worker, one, BlkStatus::IOERR);
        }
        self.pass_down_at_once(worker, one);
    }

    /// Discards what is in `one`, which is kept from use already, and which only the device knows that asks for it: whether
    /// it has the blocks again after a rollback makes no difference to anybody else.
    pub(crate) fn pass_down_at_once(
        self: &Arc<Self>,
        worker: &mut Worker,
        mut one: KBox<PassDown>,
    ) {
        let dev = one.dev.clone();
        one.hold = Some(self.hold());
        match Discard::new(&dev, one) {
            Ok(mut discard) => dm::with_plug(|| {
                let mut i = 0usize;
                while let Some(blocks) = discard.value().ranges.0.get(i).cloned() {
                    let sector = self.block_size.to_sectors(blocks.start);
                    let end = self.block_size.to_sectors(blocks.end);
                    discard.issue(sector, end.saturating_sub(sector));
                    i = i.wrapping_add(1);
                }
                discard.finish(None);
            }),
            Err(one) => self.finish_pass_down(worker, one, BlkStatus::OK),
        }
    }

    /// The discards have ended, or there are none. Ends the bio that asked for them with `status`.
    pub(crate) fn finish_pass_down(
        self: &Arc<Self>,
        worker: &mut Worker,
        one: KBox<PassDown>,
        status: BlkStatus,
    ) {
        one.release(&mut worker.busy);
        self.blocks_released(worker);
        match one.into_cause() {
            Cause::Bio(bio) => bio.end(status),
            Cause::Deletion => {
                worker.deletions = worker.deletions.saturating_sub(1);
                self.finish_reclaim(worker);
            }
        }
    }
}
