// SPDX-License-Identifier: GPL-2.0

//! The life of a new mapping.
//!
//! A data block has been allocated and the virtual block's cell locked: the mapping is [`Preparing`] while
//! the data block is zeroed, copied to, or overwritten. When that is done it is [`Prepared`] and waits for
//! the worker, which inserts it into the metadata and lets the bios in the cell go on. Each step consumes
//! the one before.

use core::{
    mem::MaybeUninit,
    ops::Range, //
};

use dm::{
    kcopyd::Job,
    BlkStatus,
    Sector, //
};
use kernel::{
    alloc::Flags,
    prelude::*,
    sync::{
        new_spinlock_irq,
        Arc,
        SpinLockIrq, //
    }, //
};
use thin_metadata::{
    DataBlock,
    VirtualBlock, //
};

use crate::{
    cells::CellId,
    hold::PoolHold,
    per_bio::ThinBio,
    spare::Spare,
    thin::Thin, //
};

/// How many mappings can be on their way where there is no memory.
pub(crate) const LEAST_ROOMS: usize = 16;
/// How many rooms are kept once so many mappings were on their way.
pub(crate) const KEPT_ROOMS: usize = 64;

/// What a mapping is made for.
pub(crate) struct NewMapping {
    /// The device.
    pub(crate) thin: Arc<Thin>,
    /// The virtual block.
    pub(crate) block: VirtualBlock,
    /// The data block, allocated for this mapping.
    pub(crate) data: DataBlock,
    /// The virtual block's cell.
    pub(crate) cell: CellId,
    /// The part of the data block that is to be zeroed, or is being zeroed, as the write does not cover it.
    pub(crate) zeroes: Range<Sector>,
    /// How much of the data block is copied from the external origin; nothing is copied before that is zeroed
    /// which is to be zeroed.
    pub(crate) from_origin: Sector,
    /// Whether the virtual block is mapped already, to a block that others share.
    pub(crate) breaks_sharing: bool,
    /// The bio that caused all this; elsewhere while it overwrites the data block.
    pub(crate) holder: Option<ThinBio>,
}

/// A mapping on its way, in the form in which kcopyd takes it.
pub(crate) struct Node {
    mapping: NewMapping,
    status: BlkStatus,
    overwritten: bool,
    /// While kcopyd has it.
    hold: Option<PoolHold>,
    next: Option<KBox<Job<Node>>>,
}

/// A mapping whose data block is not ready yet.
pub(crate) struct Preparing(KBox<Job<Node>>);

/// Room for a mapping, to be had before the data block, so that no block is lost for lack of memory.
pub(crate) struct Room(KBox<MaybeUninit<Job<Node>>>);

impl Room {
    /// Fails with [`ENOMEM`].
    pub(crate) fn new(flags: Flags) -> Result<Self> {
        Ok(Self(KBox::new_uninit(flags)?))
    }

    /// Starts the life of `mapping`.
    pub(crate) fn fill(self, mapping: NewMapping) -> Preparing {
        Preparing(KBox::write(
            self.0,
            Job::new(Node {
                mapping,
                status: BlkStatus::OK,
                overwritten: false,
                hold: None,
                next: None,
            }),
        ))
    }
}

impl Preparing {
    /// The mapping that kcopyd gives back.
    ///
    /// The hold that comes along must be kept until the thread has done with it.
    pub(crate) fn from_job(mut job: KBox<Job<Node>>) -> (Self, Option<PoolHold>) {
        let hold = job.hold.take();
        (Self(job), hold)
    }

    /// What kcopyd takes.
    pub(crate) fn into_job(mut self) -> KBox<Job<Node>> {
        self.0.hold = Some(self.0.mapping.thin.pool.hold());
        self.0
    }

    /// The mapping.
    pub(crate) fn mapping(&self) -> &NewMapping {
        &self.0.mapping
    }

    /// Takes the bio that caused the mapping, in order to let it overwrite the data block.
    pub(crate) fn take_holder(&mut self) -> Option<ThinBio> {
        self.0.mapping.holder.take()
    }

    /// The data block has been zeroed or copied to, with this result.
    pub(crate) fn finish(mut self, status: BlkStatus) -> Prepared {
        self.0.status = status;
        Prepared(self.0)
    }

    /// The data block has been overwritten by `bio`, with this result.
    pub(crate) fn finish_overwrite(mut self, bio: ThinBio, status: BlkStatus) -> Prepared {
        self.0.status = status;
        self.0.overwritten = true;
        self.0.mapping.holder = Some(bio);
        Prepared(self.0)
    }
}

/// A mapping whose data block is ready, or could not be made so.
pub(crate) struct Prepared(KBox<Job<Node>>);

impl Prepared {
    /// Goes on with the next step if only the first one of two was done: what is to be zeroed has been, but the
    /// copy from the external origin is missing.
    pub(crate) fn next_step(mut self) -> Result<Preparing, Self> {
        let Node {
            mapping, status, ..
        } = &mut **self.0;
        if !status.is_ok() || mapping.from_origin == 0 || mapping.zeroes.is_empty() {
            return Err(self);
        }
        mapping.zeroes = 0..0;
        Ok(Preparing(self.0))
    }

    /// The mapping, how its preparation ended, and whether the bio that caused it has written its data. The room goes
    /// back.
    pub(crate) fn into_parts(self, rooms: &mut Spare<Room>) -> (NewMapping, BlkStatus, bool) {
        let (node, room) = Job::take(self.0);
        rooms.give(Room(room));
        (node.mapping, node.status, node.overwritten)
    }
}

/// The mappings that wait for the worker, pushed from any context.
#[pin_data]
pub(crate) struct PreparedQueue {
    #[pin]
    newest: SpinLockIrq<Option<KBox<Job<Node>>>>,
}

impl PreparedQueue {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            newest <- new_spinlock_irq!(None, "dm_thin::PreparedQueue"),
        })
    }

    /// Adds a mapping.
    pub(crate) fn push(&self, Prepared(mut node): Prepared) {
        let mut newest = self.newest.lock();
        node.next = newest.take();
        *newest = Some(node);
    }

    /// Takes all mappings, the oldest first.
    pub(crate) fn take(&self) -> PreparedMappings {
        let mut newest = self.newest.lock().take();
        let mut oldest = None;
        while let Some(mut node) = newest {
            newest = node.next.take();
            node.next = oldest;
            oldest = Some(node);
        }
        PreparedMappings(oldest)
    }
}

/// Mappings taken from a queue.
pub(crate) struct PreparedMappings(Option<KBox<Job<Node>>>);

impl Iterator for PreparedMappings {
    type Item = Prepared;

    fn next(&mut self) -> Option<Prepared> {
        let mut node = self.0.take()?;
        self.0 = node.next.take();
        Some(Prepared(node))
    }
}
