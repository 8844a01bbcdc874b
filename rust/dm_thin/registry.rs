// SPDX-License-Identifier: GPL-2.0

//! All pools.
//!
//! A pool outlives its tables: it is made by the first one, found again by later ones of the same mapped
//! device, and by the thin devices in it, and closed when the last of them is gone.

use core::ops::Deref;

use dm::{
    Dev,
    MdId,
    StaticMutex, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    pool::{
        Pool,
        PoolParams, //
    },
    LOG_PREFIX, //
};

struct Entry {
    pool: Arc<Pool>,
    users: usize,
}

/// Lock order: before all locks of a pool.
static POOLS: StaticMutex<KVVec<Entry>> = StaticMutex::new(KVVec::new(), c"dm_thin::POOLS");

/// What is left in a static is never freed.
fn free_if_empty(pools: &mut KVVec<Entry>) {
    if pools.is_empty() {
        *pools = KVVec::new();
    }
}

/// A user's share in a pool.
pub(crate) struct PoolRef {
    // Dropped first: the last reference is that of the registry.
    pool: Arc<Pool>,
    _share: Share,
}

impl Deref for PoolRef {
    type Target = Arc<Pool>;

    fn deref(&self) -> &Arc<Pool> {
        &self.pool
    }
}

impl PoolRef {
    fn share(entry: &mut Entry) -> Self {
        entry.users += 1;
        Self::counted(entry.pool.clone())
    }

    /// For one of the users who are counted already.
    fn counted(pool: Arc<Pool>) -> Self {
        Self {
            _share: Share { md: pool.md },
            pool,
        }
    }

    /// The pool of a mapped device.
    pub(crate) fn find(md: MdId) -> Option<Self> {
        let mut pools = POOLS.lock();
        let entry = pools.iter_mut().find(|entry| entry.pool.md == md)?;
        Some(Self::share(entry))
    }

    /// The pool of a mapped device, which is made if there is none. Whether it was made comes along.
    ///
    /// An error comes with the reason that the log shall give.
    pub(crate) fn find_or_create(
        params: PoolParams<'_>,
    ) -> Result<(Self, bool), (&'static CStr, Error)> {
        let same = |a: &Dev, b: &Dev| a.is_same(b);
        let mut pools = POOLS.lock();

        let by_metadata = pools
            .iter_mut()
            .find(|entry| same(&entry.pool.metadata_dev, &params.metadata_dev));
        if let Some(entry) = by_metadata {
            if entry.pool.md != params.md {
                return Err((c"metadata device already in use by a pool", EBUSY));
            }
            if !same(&entry.pool.data_dev, &params.data_dev) {
                return Err((c"data device already in use by a pool", EBUSY));
            }
            return Ok((Self::share(entry), false));
        }
        if pools.iter().any(|entry| entry.pool.md == params.md) {
            return Err((c"different pool cannot replace a pool", EINVAL));
        }

        let no_memory = |_| (c"Error allocating memory for pool", ENOMEM);
        pools.reserve(1, GFP_KERNEL).map_err(no_memory)?;
        let pool = Pool::new(params).inspect_err(|_| free_if_empty(&mut pools))?;
        let entry = Entry {
            pool: pool.clone(),
            users: 1,
        };
        pools.push(entry, GFP_KERNEL).map_err(no_memory)?;
        Ok((Self::counted(pool), true))
    }
}

/// What makes a user count.
struct Share {
    md: MdId,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut pools = POOLS.lock();
        let Some(i) = pools.iter().position(|entry| entry.pool.md == self.md) else {
            return;
        };
        let Some(entry) = pools.get_mut(i) else {
            return;
        };
        entry.users = entry.users.saturating_sub(1);
        if entry.users > 0 {
            return;
        }
        // Still under the lock, as is the end of the pool with all that its metadata device may still be sent: nobody opens
        // the metadata before.
        if let Err(e) = entry.pool.close() {
            dm::log::warn!(
                LOG_PREFIX,
                "{}: closing the metadata failed: {e}",
                entry.pool.name()
            );
        }
        drop(pools.remove(i));
        free_if_empty(&mut pools);
    }
}
