// SPDX-License-Identifier: GPL-2.0

//! The active thin devices of a pool.

use dm::NoIo;
use kernel::{
    prelude::*,
    rbtree::RBTree,
    sync::{
        new_mutex,
        Arc,
        Mutex, //
    }, //
};

use crate::{
    pool::Pool,
    queue::Queue,
    thin::Thin, //
};

/// The active thin devices of a pool.
#[pin_data]
pub(crate) struct Thins {
    #[pin]
    locked: Mutex<Locked>,
    /// Those that have something for the worker.
    #[pin]
    pub(crate) queue: Queue<Thin>,
}

struct Locked {
    /// By serial number.
    active: RBTree<u64, Arc<Thin>>,
    next_serial: u64,
}

impl Thins {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            locked <- new_mutex!(
                Locked {
                    active: RBTree::new(),
                    next_serial: 1,
                },
                "dm_thin::Thins"
            ),
            queue <- Queue::new(),
        })
    }
}

impl Pool {
    /// Adds an active thin device, which `make` makes of its serial number.
    ///
    /// [`EBUSY`] if the pool is suspended: it would not suspend the device with the others.
    pub(crate) fn add_thin(
        &self,
        make: impl FnOnce(u64) -> Result<Arc<Thin>>,
    ) -> Result<Arc<Thin>> {
        // The worker takes the lock, so nobody may wait for I/O with it.
        let _noio = NoIo::enter();
        let mut thins = self.thins.locked.lock();
        // Whoever suspends the pool says so before looking at the devices, which takes the lock.
        if self.is_suspended() {
            return Err(EBUSY);
        }
        let serial = thins.next_serial;
        let thin = make(serial)?;
        thins
            .active
            .try_create_and_insert(serial, thin.clone(), GFP_KERNEL)?;
        thins.next_serial = serial.wrapping_add(1);
        Ok(thin)
    }

    /// Removes an active thin device; the worker does not know it any more when this returns.
    pub(crate) fn remove_thin(self: &Arc<Self>, serial: u64) {
        let removed = self.thins.locked.lock().active.remove(&serial);
        drop(removed);
        // It may be in the queue, though there is nothing to be done for it.
        self.flush_work();
    }

    /// The active thin device after the one with serial number `after`, or the first one.
    fn next_thin(&self, after: Option<u64>) -> Option<Arc<Thin>> {
        let thins = self.thins.locked.lock();
        let next = match after {
            Some(after) => thins.active.cursor_lower_bound(&after.checked_add(1)?)?,
            None => thins.active.cursor_front()?,
        };
        Some(next.current().1.clone())
    }

    /// Calls `f` for each active thin device.
    pub(crate) fn for_each_thin(&self, mut f: impl FnMut(&Arc<Thin>)) {
        let mut after = None;
        while let Some(thin) = self.next_thin(after) {
            f(&thin);
            after = Some(thin.serial);
        }
    }

    /// Suspends all active thin devices.
    ///
    /// The external origin of one may be another one. Bios that wait there because it is suspended keep the device
    /// above from being suspended. So those that have external origins come first, and the latest of these
    /// before older ones, as an origin is there before the device on top of it.
    pub(crate) fn suspend_thins(&self) {
        for has_origin in [true, false] {
            let mut before = None;
            while let Some(thin) = self.previous_thin(before) {
                if thin.origin.is_some() == has_origin {
                    thin.ti.internal_suspend_noflush();
                }
                before = Some(thin.serial);
            }
        }
    }

    /// The active thin device before the one with serial number `before`, or the last one.
    fn previous_thin(&self, before: Option<u64>) -> Option<Arc<Thin>> {
        let thins = self.thins.locked.lock();
        let beyond = before.and_then(|before| thins.active.cursor_lower_bound(&before));
        match beyond {
            Some(beyond) => beyond.peek_prev().map(|(_, thin)| thin.clone()),
            None => Some(thins.active.cursor_back()?.current().1.clone()),
        }
    }
}
