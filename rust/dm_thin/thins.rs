// SPDX-License-Identifier: GPL-2.0

//! The active thin devices of a pool.

use dm::{
    MdId,
    NoIo, //
};
use kernel::{
    prelude::*,
    rbtree::RBTree,
    sync::{
        atomic::ordering::Relaxed,
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

/// How many devices are looked for on top of each other, should they make a ring.
const MAX_ORIGINS: usize = 256;

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
    /// Those of them that stand on a mapped device, by that and their serial number.
    above: RBTree<(MdId, u64), Arc<Thin>>,
    next_serial: u64,
}

impl Thins {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            locked <- new_mutex!(
                Locked {
                    active: RBTree::new(),
                    above: RBTree::new(),
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
        let origin = thin.origin.as_ref().and_then(|origin| origin.md);
        if let Some(origin) = origin {
            let key = (origin, serial);
            thins
                .above
                .try_create_and_insert(key, thin.clone(), GFP_KERNEL)?;
        }
        let added = thins
            .active
            .try_create_and_insert(serial, thin.clone(), GFP_KERNEL);
        if let Err(e) = added {
            let above = origin.and_then(|origin| thins.above.remove(&(origin, serial)));
            drop(thins);
            drop(above);
            return Err(e);
        }
        thins.next_serial = serial.wrapping_add(1);
        Ok(thin)
    }

    /// Removes an active thin device; the worker does not know it any more when this returns.
    pub(crate) fn remove_thin(self: &Arc<Self>, thin: &Thin) {
        let mut thins = self.thins.locked.lock();
        let removed = thins.active.remove(&thin.serial);
        let origin = thin.origin.as_ref().and_then(|origin| origin.md);
        let above = origin.and_then(|origin| thins.above.remove(&(origin, thin.serial)));
        drop(thins);
        drop((removed, above));
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

    /// Suspends all active thin devices. Only the pool's own suspend calls this, and one at a time.
    ///
    /// The external origin of one may be another one. Bios that wait there because it is suspended keep the device
    /// above from being suspended. So a device comes before its origin. If there are others in between, which cannot be
    /// seen from here: those that have external origins come first, and the latest of these before older ones, as an
    /// origin is mostly there before the device on top of it.
    pub(crate) fn suspend_thins(&self) {
        for has_origin in [true, false] {
            let mut before = None;
            while let Some(thin) = self.previous_thin(before) {
                if thin.origin.is_some() == has_origin {
                    self.suspend_from_above(&thin);
                }
                before = Some(thin.serial);
            }
        }
    }

    /// Suspends `thin`, after all devices that stand on it.
    fn suspend_from_above(&self, thin: &Arc<Thin>) {
        while !thin.suspended_with_pool.load(Relaxed) {
            // Where tables make a ring, one of them is only loaded: it has no bios.
            let next = self
                .topmost(thin, |_| true)
                .or_else(|| self.topmost(thin, |above| above.in_use.load(Relaxed)))
                .unwrap_or_else(|| thin.clone());
            next.suspended_with_pool.store(true, Relaxed);
            next.ti.internal_suspend_noflush();
        }
    }

    /// Of the devices that stand on `thin`, that are `wanted` and not suspended along with the pool yet, one that nothing
    /// stands on; `thin` if there are none, and `None` if they make a ring.
    fn topmost(&self, thin: &Arc<Thin>, wanted: fn(&Thin) -> bool) -> Option<Arc<Thin>> {
        let mut top = thin.clone();
        for _ in 0..MAX_ORIGINS {
            match self.thin_above(&top, wanted) {
                Some(above) => top = above,
                None => return Some(top),
            }
        }
        None
    }

    /// A device whose external origin `thin` is, that is `wanted` and not suspended along with the pool yet.
    fn thin_above(&self, thin: &Thin, wanted: fn(&Thin) -> bool) -> Option<Arc<Thin>> {
        let md = thin.ti.md_id();
        let thins = self.thins.locked.lock();
        let mut from = 0;
        loop {
            let cursor = thins.above.cursor_lower_bound(&(md, from))?;
            let (&(origin, serial), above) = cursor.current();
            if origin != md {
                return None;
            }
            if wanted(above) && !above.suspended_with_pool.load(Relaxed) {
                return Some(above.clone());
            }
            from = serial.checked_add(1)?;
        }
    }

    /// Resumes what [`suspend_thins`](Self::suspend_thins) has suspended.
    pub(crate) fn resume_thins(&self) {
        self.for_each_thin(|thin| {
            thin.suspended_with_pool.store(false, Relaxed);
            thin.ti.internal_resume();
        });
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
