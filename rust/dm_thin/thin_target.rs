// SPDX-License-Identifier: GPL-2.0

//! The `thin` target.
//!
//! ```text
//! thin <pool dev> <dev id> [<external origin dev>]
//! ```

use core::fmt::{
    self,
    Write, //
};

use dm::{
    args::parse_u64,
    Args,
    BlkStatus,
    Ctr,
    EachDevice,
    EndIo,
    Features,
    Limits,
    Map,
    Op,
    Output,
    Sector,
    StatusFlags,
    StatusKind,
    Stop,
    Target, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::ordering::Relaxed,
        Arc, //
    }, //
};
use thin_metadata::{
    DeviceId,
    Mapping,
    VirtualBlock, //
};

use crate::{
    block_size::BlockSize,
    in_flight::Epoch,
    mode::Mode,
    origin::Origin,
    per_bio::{
        PerBio,
        ThinBio, //
    },
    registry::PoolRef,
    thin::Thin,
    DmThin,
    LOG_PREFIX, //
};

/// Where a flush goes, which concerns no block.
const NO_BLOCK: Mapping = Mapping {
    block: 0,
    shared: false,
};

const ORIGIN_IS_POOL: &CStr = c"Error setting origin device";

/// A table of a thin device.
pub(crate) struct ThinTarget {
    thin: Arc<Thin>,
    pool: PoolRef,
}

impl ThinTarget {
    /// Leaves a bio to the worker, when that keeps up, unless it must not wait.
    fn defer(&self, bio: ThinBio) -> Map<PerBio> {
        if bio.is_nowait() {
            return Self::end(bio, BlkStatus::AGAIN);
        }
        self.pool.throttle.pass(|| self.thin.defer(bio));
        Map::Submitted
    }

    /// Maps a bio that is in the set of those in flight, but is not sent to its block at first sight. `known` is what
    /// the cache knows of the block.
    #[cold]
    fn map_in_flight(
        &self,
        mut bio: ThinBio,
        epoch: Epoch,
        known: Option<Option<Mapping>>,
    ) -> Map<PerBio> {
        let block = self.pool.block_size.block_of(bio.sector());
        let found = match known {
            Some(found) => Ok(found),
            None => self.find_block(&bio, block),
        };
        // After the look-up: what was found must be permanent.
        let needs_commit = bio.is_flush_or_fua() && !self.thin.cache.is_committed();
        match found {
            _ if needs_commit => {
                self.pool.leave(epoch);
                self.defer(bio)
            }
            Ok(Some(Mapping { block, shared })) if !shared || bio.is_read() => {
                self.pool.remap(&self.thin, &mut bio, block, epoch);
                Map::Remapped(bio)
            }
            Ok(None) if bio.is_read() => {
                self.pool.leave(epoch);
                match self.thin.read_unmapped(bio) {
                    Some(bio) => Map::Remapped(bio),
                    None => Map::Submitted,
                }
            }
            Ok(None)
                if bio.op() == Op::WriteZeroes && self.pool.keeps_zeroes_unmapped(&self.thin) =>
            {
                self.pool.leave(epoch);
                Self::end(bio, BlkStatus::OK)
            }
            // Until a commit that has failed is rolled back there is nothing to be read; the worker waits for that.
            Ok(_)
            | Err(thin_metadata::Error::WouldBlock)
            | Err(thin_metadata::Error::NeedsAbort) => {
                self.pool.leave(epoch);
                self.defer(bio)
            }
            Err(e) => {
                self.pool.leave(epoch);
                self.pool.lookup_failed(&self.thin, block, e);
                Self::end(bio, BlkStatus::IOERR)
            }
        }
    }

    /// Looks in the metadata where `block` is. Does not wait for I/O, nor for the metadata if the bio must not.
    fn find_block(
        &self,
        bio: &ThinBio,
        block: VirtualBlock,
    ) -> thin_metadata::Result<Option<Mapping>> {
        let pool = match bio.is_nowait() {
            true => self.pool.metadata.try_read(),
            false => Some(self.pool.metadata.read()),
        };
        match pool {
            Some(pool) => pool.find_block(&self.thin, block, false),
            None => Err(thin_metadata::Error::WouldBlock),
        }
    }

    /// Gives a bio its outcome at once.
    fn end(bio: ThinBio, status: BlkStatus) -> Map<PerBio> {
        bio.end(status);
        Map::Submitted
    }

    fn write_status(&self, out: &mut Output<'_>) -> fmt::Result {
        let usage = {
            let pool = self.pool.settled_metadata();
            let handle = &self.thin.handle;
            pool.metadata
                .mapped_count(handle)
                .and_then(|mapped| Ok((mapped, pool.metadata.highest_mapped(handle)?)))
        };
        let size = self.pool.block_size;
        match usage {
            Ok((mapped, highest)) => {
                write!(out, "{} ", size.to_sectors(mapped))?;
                match highest {
                    Some(block) => {
                        let end = size.to_sectors(block.saturating_add(1));
                        write!(out, "{}", end.saturating_sub(1))
                    }
                    None => write!(out, "-"),
                }
            }
            Err(e) => {
                dm::log::err!(
                    LOG_PREFIX,
                    "{}: cannot tell the status of thin device {}: {e}",
                    self.pool.name(),
                    self.thin.id
                );
                write!(out, "Error")
            }
        }
    }

    fn set_requeues(&self, on: bool) {
        if self.thin.ti.is_noflush_suspending() {
            self.thin.set_requeues(on);
            // A round that took the device out of the queue before may not have seen that; it ends here.
            self.pool.flush_work();
            self.thin.enqueue();
            // The worker gives back what it has, and has nothing of what it was given before.
            self.pool.flush_work();
        }
    }
}

#[vtable]
impl Target for ThinTarget {
    const NAME: &'static CStr = c"thin";
    const VERSION: [u32; 3] = crate::VERSION;
    const FEATURES: Features = Features::PASSES_CRYPTO.or(Features::NOWAIT);
    type Module = DmThin;
    type PerBio = PerBio;

    fn ctr(ctr: &mut Ctr<'_>, args: Args<'_>) -> Result<Pin<KBox<Self>>> {
        let (2..=3, Some(pool_path), Some(id)) = (args.len(), args.get(0), args.get(1)) else {
            return Err(ctr.error(c"Invalid argument count", EINVAL));
        };
        let origin = match args.get(2) {
            Some(path) if path == pool_path => {
                return Err(ctr.error(ORIGIN_IS_POOL, EINVAL));
            }
            Some(path) => {
                let dev = ctr
                    .get_device(path, dm::Mode::READ)
                    .map_err(|e| ctr.error(c"Error opening origin device", e))?;
                Some(Origin::new(dev))
            }
            None => None,
        };

        let mode = ctr.mode();
        let pool_dev = ctr
            .get_device(pool_path, mode)
            .map_err(|e| ctr.error(c"Error opening pool device", e))?;
        if matches!(&origin, Some(origin) if origin.dev.is_same(&pool_dev)) {
            // By another name: what the data device holds is no content of a volume.
            return Err(ctr.error(ORIGIN_IS_POOL, EINVAL));
        }
        let id = parse_u64(id)
            .ok()
            .and_then(|id| DeviceId::try_from(id).ok())
            .ok_or_else(|| ctr.error(c"Invalid device id", EINVAL))?;
        let md = pool_dev
            .mapped_device()
            .ok_or_else(|| ctr.error(c"Couldn't get pool mapped device", EINVAL))?;
        let pool = PoolRef::find(md.id())
            .ok_or_else(|| ctr.error(c"Couldn't find pool object", EINVAL))?;
        if pool.mode() == Mode::Fail {
            let reason = c"Couldn't open thin device, Pool is in fail mode";
            return Err(ctr.error(reason, EINVAL));
        }

        ctr.borrow_device(&pool.data_dev)?;
        ctr.set_max_io_len(u64::from(pool.block_size.sectors()))?;
        ctr.set_num_flush_bios(1);
        ctr.set_limit_swap_bios(true);
        ctr.set_flush_supported(true);
        ctr.set_num_write_zeroes_bios(1);
        if pool.discard_enabled {
            // Whether the data device can discard or not.
            ctr.set_discards_supported(true);
            ctr.set_num_discard_bios(1);
            ctr.set_max_discard_granularity(true);
        }

        let (handle, cache) = pool
            .changes()
            .write()
            .open_thin(id)
            .map_err(|e| ctr.error(c"Couldn't open thin internal device", e.into()))?;
        let ti = ctr.handle().clone();
        let thin = pool
            .add_thin(|serial| {
                let thin = Thin::new(
                    serial,
                    handle.clone(),
                    (*pool).clone(),
                    pool_dev,
                    cache,
                    origin,
                    ti,
                );
                Arc::pin_init(thin, GFP_KERNEL)
            })
            .map_err(|e| {
                pool.changes().write().close_thin(&handle);
                match e {
                    EBUSY => {
                        let reason = c"Unable to activate thin device while pool is suspended";
                        ctr.error(reason, EINVAL)
                    }
                    e => ctr.error(c"Out of memory", e),
                }
            })?;
        Ok(KBox::pin(Self { thin, pool }, GFP_KERNEL)?)
    }

    #[inline]
    fn map(&self, mut bio: ThinBio) -> Map<PerBio> {
        if self.thin.requeues() {
            return Self::end(bio, BlkStatus::DM_REQUEUE);
        }
        if self.pool.mode() == Mode::Fail {
            return Self::end(bio, BlkStatus::IOERR);
        }
        if self.pool.unmaps(&self.thin, &bio) {
            return self.defer(bio);
        }

        // Before the look-up: see `InFlight`.
        let epoch = self.pool.enter();
        let known = match bio.len_bytes() {
            0 => Some(Some(NO_BLOCK)),
            _ => {
                let block = self.pool.block_size.block_of(bio.sector());
                self.thin.cache.get(block)
            }
        };
        match known {
            Some(Some(Mapping { block, shared }))
                if (!shared || bio.is_read()) && !bio.is_flush_or_fua() =>
            {
                self.pool.remap(&self.thin, &mut bio, block, epoch);
                Map::Remapped(bio)
            }
            known => self.map_in_flight(bio, epoch, known),
        }
    }

    fn accept(&self, bio: &ThinBio) -> Sector {
        self.pool.accept(&self.thin, bio)
    }

    #[inline]
    fn end_io(&self, mut bio: ThinBio, status: BlkStatus) -> EndIo<PerBio> {
        let PerBio {
            epoch, overwrites, ..
        } = bio.data_mut();
        let overwrites = overwrites.take();
        if let Some(epoch) = epoch.take() {
            self.pool.leave(epoch);
        }
        match overwrites {
            Some(preparing) => {
                self.pool.finish(preparing.finish_overwrite(bio, status));
                EndIo::Incomplete
            }
            None => EndIo::Done(bio, status),
        }
    }

    fn presuspend(&self) {
        self.set_requeues(true);
    }

    fn presuspend_undo(&self) {
        // Whether it was without a flush is forgotten by now.
        self.thin.set_requeues(false);
    }

    fn postsuspend(&self) {
        self.set_requeues(false);
    }

    fn preresume(&self) -> Result {
        self.thin.in_use.store(true, Relaxed);
        if let Some(origin) = &self.thin.origin {
            origin.update_size();
        }
        Ok(())
    }

    fn status(&self, kind: StatusKind, _flags: StatusFlags, out: &mut Output<'_>) -> fmt::Result {
        if self.pool.mode() == Mode::Fail {
            return write!(out, "Fail");
        }
        match kind {
            StatusKind::Info => self.write_status(out),
            StatusKind::Table => {
                write!(out, "{} {}", self.thin.pool_dev.number(), self.thin.id)?;
                match &self.thin.origin {
                    Some(origin) => write!(out, " {}", origin.dev.number()),
                    None => Ok(()),
                }
            }
            StatusKind::Ima => Ok(()),
        }
    }

    fn iterate_devices(&self, each: &mut EachDevice<'_>) -> Result<(), Stop> {
        let size = self.pool.block_size;
        match size.block_of(self.pool.bound_len()) {
            0 => Ok(()),
            blocks => each.call(&self.thin.pool_dev, 0, size.to_sectors(blocks)),
        }
    }

    fn io_hints(&self, limits: &mut Limits) {
        set_limits(limits, self.pool.block_size, self.pool.discard_enabled);
    }
}

/// Gives a volume its own limits, where they are not those of the pool.
fn set_limits(limits: &mut Limits, size: BlockSize, discard_enabled: bool) {
    // What fits a bio.
    let most = u32::MAX >> dm::SECTOR_SHIFT;
    let most = most.saturating_sub(size.offset_of(u64::from(most)) as u32);
    if discard_enabled {
        limits.set_discard_granularity(size.sectors() << dm::SECTOR_SHIFT);
        limits.set_max_hw_discard_sectors(most);
    }
    // Zero if the data device cannot write zeroes, on which parts of blocks depend.
    if limits.max_write_zeroes_sectors() != 0 {
        limits.set_max_write_zeroes_sectors(most);
    }
    // Who sees this limit takes it that zeroed space need not be allocated again when it is written to. Whole blocks
    // that are zeroed are unmapped here, so that does not hold, whatever the data device does.
    limits.set_max_hw_wzeroes_unmap_sectors(0);
}

impl Drop for ThinTarget {
    fn drop(&mut self) {
        self.pool.remove_thin(&self.thin);
        self.pool.changes().write().close_thin(&self.thin.handle);
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_thin_thin_target)]
mod tests {
    use super::*;

    /// The core takes a volume's limits, whatever the data device says of zeroes.
    #[test]
    fn limits_of_zeroes_agree() -> Result {
        for sectors in [128, 384, 2048] {
            let size = BlockSize::new(sectors).ok_or(EINVAL)?;
            // The last device has lost its write-zeroes since it was made.
            for (most, unmap) in [(0, 0), (8192, 0), (8192, 8192), (0, 8192)] {
                for discard_enabled in [false, true] {
                    let mut limits = Limits::of_nothing();
                    limits.set_max_write_zeroes_sectors(most);
                    limits.set_max_hw_wzeroes_unmap_sectors(unmap);
                    set_limits(&mut limits, size, discard_enabled);
                    limits.validate()?;
                    assert!((limits.max_write_zeroes_sectors() == 0) == (most == 0));
                    assert_eq!(limits.max_hw_wzeroes_unmap_sectors(), 0);
                }
            }
        }
        Ok(())
    }
}
