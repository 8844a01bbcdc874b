// SPDX-License-Identifier: GPL-2.0

//! Deleting devices of a pool that is out of metadata space.
//!
//! In that mode nothing may change the metadata, but a deletion is what gives metadata blocks back. It needs some to
//! begin with, which come from the reserve that is kept for commits: copies of the nodes and bitmaps that it
//! changes. For this time the metadata device is writable, under the write lock, so that nobody else can change
//! anything. The deletion is a transaction of its own. If the reserve does not suffice for it, the transaction is
//! rolled back to the commit before, which loses nothing else, and the pool is as it was.
//!
//! At least half of the reserve must be free. A deletion that frees nothing, because others share all that the
//! device has, may leave less than there was; the other half is for the commits that follow when the metadata device
//! has grown.

use kernel::sync::Arc;
use thin_metadata::{
    DeviceId,
    Error,
    Result, //
};

use crate::{
    mode::Mode,
    pool::Pool,
    pool_metadata::PoolMetadata, //
};

impl Pool {
    /// Deletes device `id` with blocks of the metadata reserve, and commits.
    ///
    /// Gives [`Error::ReadOnly`] if the pool is in another mode than out of metadata space, and
    /// [`Error::NoMetadataSpace`] if the reserve does not suffice; the pool is as it was then.
    pub(crate) fn delete_from_reserve(self: &Arc<Self>, id: DeviceId) -> Result {
        let (result, low, given_up) = {
            let mut changes = self.changes();
            let mut pool = changes.write();
            if self.mode() != Mode::OutOfMetadataSpace || pool.metadata.needs_check() {
                return Err(Error::ReadOnly);
            }
            if !pool.metadata.may_use_reserve()? {
                return Err(Error::NoMetadataSpace);
            }
            pool.set_read_only(false);
            let result = self.delete_and_commit(&mut pool, id);
            // What fails before anything is changed, or is undone, leaves nothing to commit.
            let failed =
                result.is_err() && (pool.metadata.needs_commit() || pool.metadata.is_failed());
            let low = pool.metadata.threshold_crossed();
            let given_up = match failed {
                true => pool.give_up(),
                false => {
                    pool.metadata.set_read_only(true);
                    None
                }
            };
            (result, low, given_up)
        };
        if low {
            self.report_low_metadata();
        }
        match result {
            Err(e) if given_up.is_some() => {
                self.operation_failed("dm_pool_delete_thin_device", e, given_up);
            }
            Err(_) => {}
            Ok(()) => {
                self.check_metadata_space();
                self.wake();
            }
        }
        result
    }

    fn delete_and_commit(&self, pool: &mut PoolMetadata, id: DeviceId) -> Result {
        // What was changed before is not to be lost if the deletion fails.
        pool.commit(|| self.flush_data())?;
        let result = pool
            .delete_thin(id, self.discards_on_delete())
            .and_then(|()| pool.commit(|| self.flush_data()));
        match result {
            Err(Error::NoMetadataSpace) => pool.undo().and(result),
            result => result,
        }
    }
}
