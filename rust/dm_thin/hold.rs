// SPDX-License-Identifier: GPL-2.0

//! Holding on to a pool where it must not be dropped.
//!
//! Who drops the last reference to a pool closes its metadata device, its work queue and its kcopyd client, which
//! sleeps, and may not happen in these very threads. What runs in interrupts and in kcopyd's thread therefore has
//! a [`PoolHold`], and the pool is not closed before all of them are gone.

use core::ops::Deref;

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    hold_set::HoldSet,
    in_flight::Epoch,
    pool::Pool, //
};

/// A reference to a pool that is never the last one.
pub(crate) struct PoolHold {
    // Dropped in this order: whoever waits for the hold may take the last reference away after that.
    pool: Arc<Pool>,
    _hold: Hold,
}

impl Deref for PoolHold {
    type Target = Arc<Pool>;

    fn deref(&self) -> &Arc<Pool> {
        &self.pool
    }
}

/// What is counted; it outlives the pool.
struct Hold {
    set: Arc<HoldSet>,
    epoch: Option<Epoch>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(epoch) = self.epoch.take() {
            self.set.leave(epoch);
        }
    }
}

/// The holds of a pool.
pub(crate) struct Holds(Arc<HoldSet>);

impl Holds {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Arc::pin_init(HoldSet::new(), GFP_KERNEL)?))
    }

    /// Waits for all holds that there are. At most one thread may be in here.
    pub(crate) fn wait(&self) {
        self.0.wait();
    }
}

impl Pool {
    /// Takes a hold; any context.
    pub(crate) fn hold(self: &Arc<Self>) -> PoolHold {
        let set = self.holds.0.clone();
        let epoch = Some(set.enter());
        PoolHold {
            pool: self.clone(),
            _hold: Hold { set, epoch },
        }
    }
}
