// SPDX-License-Identifier: GPL-2.0

//! A thin device, as the pool knows it.

use dm::{
    Dev,
    Ti, //
};
use kernel::{
    list::{
        impl_list_arc_safe,
        impl_list_item,
        AtomicTracker,
        ListLinks,
        TryNewListArc, //
    },
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            AtomicFlag, //
        },
        new_spinlock_irq,
        Arc,
        SpinLockIrq, //
    }, //
};
use thin_metadata::{
    DeviceId,
    ThinHandle, //
};

use crate::{
    mapping_cache::MappingCache,
    origin::Origin,
    per_bio::{
        ThinBio,
        ThinBios, //
    },
    pool::Pool, //
};

/// The bios of a thin device that wait for something.
#[derive(Default)]
pub(crate) struct Deferred {
    /// For the worker.
    pub(crate) bios: ThinBios,
    /// For more space in the pool.
    pub(crate) retry: ThinBios,
}

/// An active thin device.
#[pin_data]
pub(crate) struct Thin {
    /// Tells the devices of a pool apart; two of them have the same `id` while a table is reloaded.
    pub(crate) serial: u64,
    pub(crate) id: DeviceId,
    pub(crate) handle: ThinHandle,
    pub(crate) pool: Arc<Pool>,
    /// The pool's mapped device.
    pub(crate) pool_dev: Dev,
    pub(crate) cache: Arc<MappingCache>,
    pub(crate) origin: Option<Origin>,
    pub(crate) ti: Ti,
    /// Set while the device is suspended without flushing: bios are given back to be queued above us.
    requeue: AtomicFlag,
    /// Set once the table is in use: one that is only loaded has no bios.
    pub(crate) in_use: AtomicFlag,
    /// Set while the device is suspended along with the pool; for those who suspend and resume that.
    pub(crate) suspended_with_pool: AtomicFlag,
    /// Innermost but for [`InFlight`](crate::in_flight::InFlight); taken in any context.
    #[pin]
    deferred: SpinLockIrq<Deferred>,
    /// Its place in the worker's queue.
    #[pin]
    links: ListLinks,
    #[pin]
    tracker: AtomicTracker,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for Thin { tracked_by tracker: AtomicTracker; }
}
impl_list_item! {
    impl ListItem<0> for Thin { using ListLinks { self.links }; }
}

impl Thin {
    pub(crate) fn new(
        serial: u64,
        handle: ThinHandle,
        pool: Arc<Pool>,
        pool_dev: Dev,
        cache: Arc<MappingCache>,
        origin: Option<Origin>,
        ti: Ti,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            serial,
            id: handle.id(),
            handle,
            pool,
            pool_dev,
            cache,
            origin,
            ti,
            requeue: AtomicFlag::new(false),
            in_use: AtomicFlag::new(false),
            suspended_with_pool: AtomicFlag::new(false),
            deferred <- new_spinlock_irq!(Deferred::default(), "dm_thin::Thin::deferred"),
            links <- ListLinks::new(),
            tracker <- AtomicTracker::new(),
        })
    }

    /// Whether bios shall be given back instead of processed.
    ///
    /// When such a suspend is interrupted, new bios come before the target hears of it. device-mapper has forgotten by
    /// then that it was to happen without a flush, and would fail what is given back.
    pub(crate) fn requeues(&self) -> bool {
        self.requeue.load(Relaxed) && self.ti.is_noflush_suspending()
    }

    pub(crate) fn set_requeues(&self, on: bool) {
        self.requeue.store(on, Relaxed);
    }

    /// Has the worker look at the device in its next round, which need not come soon; any context.
    pub(crate) fn enqueue(self: &Arc<Self>) {
        self.pool.thins.queue.add(self);
    }

    /// Leaves `bio` to the worker.
    pub(crate) fn defer(self: &Arc<Self>, mut bio: ThinBio) {
        bio.data_mut().thin = Some(self.clone());
        self.deferred.lock().bios.push(bio);
        self.enqueue();
        self.pool.wake();
    }

    /// Leaves a bio to the worker once more. It may be that of another device with the same number.
    pub(crate) fn defer_again(self: &Arc<Self>, bio: ThinBio) {
        let device = bio.data().thin.as_ref().unwrap_or(self).clone();
        device.defer(bio);
    }

    /// Puts `bios` back in front of those that wait for the worker, until its next round.
    pub(crate) fn undo_take(self: &Arc<Self>, mut bios: ThinBios) {
        {
            let mut deferred = self.deferred.lock();
            bios.append(&mut deferred.bios);
            deferred.bios = bios;
        }
        self.enqueue();
    }

    /// Keeps `bio` until the pool has more space.
    pub(crate) fn retry_later(&self, bio: ThinBio) {
        self.deferred.lock().retry.push(bio);
    }

    /// Takes the bios that wait for the worker.
    pub(crate) fn take_deferred(&self) -> ThinBios {
        core::mem::take(&mut self.deferred.lock().bios)
    }

    /// Takes the bios that wait for more space.
    pub(crate) fn take_retries(&self) -> ThinBios {
        core::mem::take(&mut self.deferred.lock().retry)
    }

    /// Hands the bios that wait for more space to the worker, for its next round.
    pub(crate) fn retry(self: &Arc<Self>) {
        {
            let mut deferred = self.deferred.lock();
            let mut retries = core::mem::take(&mut deferred.retry);
            if retries.is_empty() {
                return;
            }
            deferred.bios.append(&mut retries);
        }
        self.enqueue();
    }
}
