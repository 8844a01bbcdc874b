// SPDX-License-Identifier: GPL-2.0

//! The `thin-pool` target.
//!
//! ```text
//! thin-pool <metadata dev> <data dev> <data block size (sectors)> <low water mark (blocks)>
//!           [<#feature args> [<arg>]*]
//! ```

use core::fmt::{
    self,
    Write, //
};

use dm::{
    args::{
        parse_u64,
        parse_ulong, //
    },
    Args,
    Bio,
    Ctr,
    Dev,
    EachDevice,
    Features as TargetFeatures,
    Limits,
    Map,
    Message,
    Mode as OpenMode,
    Output,
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
use thin_metadata::format::{
    METADATA_BLOCK_SECTORS,
    METADATA_MAX_SECTORS,
    METADATA_MAX_SECTORS_WARNING, //
};

use crate::{
    block_size::BlockSize,
    control::Binding,
    features::Features,
    mode::Mode,
    pool::PoolParams,
    registry::PoolRef,
    state::Event,
    DmThin,
    LOG_PREFIX, //
};

/// A table of a pool.
pub(crate) struct PoolTarget {
    pub(crate) pool: PoolRef,
    pub(crate) binding: Arc<Binding>,
    metadata_dev: Dev,
    data_dev: Dev,
}

impl PoolTarget {
    /// The size of the metadata device, as far as it is used, in blocks.
    fn metadata_dev_blocks(dev: &Dev) -> u64 {
        dev.sectors().min(METADATA_MAX_SECTORS) / u64::from(METADATA_BLOCK_SECTORS)
    }

    /// How few free metadata blocks make an event, upon which user space should grow the device.
    ///
    /// 4 MiB is enough for everything but perhaps the deletion of a device, which can be tried again.
    fn metadata_threshold(dev: &Dev) -> u64 {
        (Self::metadata_dev_blocks(dev) / 4).min(1024)
    }

    fn warn_if_too_big(dev: &Dev) {
        if dev.sectors() > METADATA_MAX_SECTORS_WARNING {
            dm::log::warn!(
                LOG_PREFIX,
                "Metadata device {} is larger than {METADATA_MAX_SECTORS} sectors: \
                 excess space will not be used.",
                dev.name()
            );
        }
    }

    /// Whether a space map of `old` blocks shall grow to `new`, which `whole`, with all of the `device`, has.
    fn grows(&self, whole: &str, device: &str, old: u64, new: u64) -> Result<bool> {
        let name = self.pool.name();
        if new < old {
            dm::log::err!(
                LOG_PREFIX,
                "{name}: {whole} ({new} blocks) too small: expected {old}"
            );
            return Err(EINVAL);
        }
        if new == old {
            return Ok(false);
        }
        if self.pool.metadata.read().metadata.needs_check() {
            dm::log::err!(
                LOG_PREFIX,
                "{name}: unable to grow the {device} until repaired."
            );
            return Ok(false);
        }
        if self.pool.mode() == Mode::ReadOnly {
            dm::log::err!(
                LOG_PREFIX,
                "{name}: unable to grow the {device} of a read-only pool."
            );
            return Ok(false);
        }
        Ok(true)
    }

    fn log_growth(&self, device: &str, old: u64, new: u64) {
        dm::log::info!(
            LOG_PREFIX,
            "{}: growing the {device} from {old} to {new} blocks",
            self.pool.name()
        );
    }

    /// Grows the data space map to the table's length. Whether there is something to commit.
    fn maybe_resize_data(&self) -> Result<bool> {
        let pool = &self.pool;
        let new = pool.block_size.block_of(self.binding.ti.len());
        let old = pool.metadata.read().metadata.nr_data_blocks()?;
        if !self.grows("pool target", "data device", old, new)? {
            return Ok(false);
        }
        if old != 0 {
            self.log_growth("data device", old, new);
        }
        pool.change("dm_pool_resize_data_dev", |pool| {
            pool.metadata.resize_data(new)
        })?;
        Ok(true)
    }

    /// Grows the metadata space map to the metadata device's size. Whether there is something to commit.
    fn maybe_resize_metadata(&self) -> Result<bool> {
        let pool = &self.pool;
        let new = Self::metadata_dev_blocks(&self.metadata_dev);
        let old = pool.metadata.read().metadata.nr_metadata_blocks()?;
        if !self.grows("metadata device", "metadata device", old, new)? {
            return Ok(false);
        }
        Self::warn_if_too_big(&self.metadata_dev);
        self.log_growth("metadata device", old, new);
        pool.handle(Event::MetadataSpaceFreed);
        pool.change("dm_pool_resize_metadata_dev", |pool| {
            pool.metadata.resize_metadata(new)
        })?;
        Ok(true)
    }

    fn bind_and_resize(&self) -> Result {
        self.pool.bind(&self.binding);
        self.pool.stabilise();
        let data_grew = self.maybe_resize_data()?;
        let metadata_grew = self.maybe_resize_metadata()?;
        if data_grew || metadata_grew {
            // A failure has changed the pool's mode, which is all that can be done about it.
            let _ = self.pool.commit();
        }
        Ok(())
    }

    /// The numbers of the status line, as far as the metadata give them.
    fn write_usage(&self, out: &mut Output<'_>) -> thin_metadata::Result<fmt::Result> {
        let pool = self.pool.settled_metadata();
        let metadata = &pool.metadata;
        let transaction_id = metadata.transaction_id()?;
        let nr_metadata = metadata.nr_metadata_blocks()?;
        let used_metadata = nr_metadata.saturating_sub(metadata.free_metadata_blocks()?);
        let nr_data = metadata.nr_data_blocks()?;
        let used_data = nr_data.saturating_sub(metadata.free_data_blocks()?);
        let snap = metadata.metadata_snap()?;

        Ok((|| {
            write!(
                out,
                "{transaction_id} {used_metadata}/{nr_metadata} {used_data}/{nr_data} "
            )?;
            match snap {
                Some(root) => write!(out, "{root} "),
                None => write!(out, "- "),
            }
        })())
    }

    fn write_status(&self, flags: StatusFlags, out: &mut Output<'_>) -> fmt::Result {
        let pool = &self.pool;
        if pool.mode() == Mode::Fail {
            return write!(out, "Fail");
        }
        if !flags.is_noflush() && !self.binding.ti.is_suspended() {
            // The numbers are those of the last commit. A failure shows in the mode.
            pool.commit_or_probe();
        }

        match self.write_usage(out) {
            Ok(written) => written?,
            Err(e) => {
                dm::log::err!(LOG_PREFIX, "{}: cannot tell the status: {e}", pool.name());
                return write!(out, "Error");
            }
        }
        let discards = match (pool.discard_enabled, pool.passes_discards_down()) {
            (false, _) => "ignore_discard",
            (true, true) => "discard_passdown",
            (true, false) => "no_discard_passdown",
        };
        let no_space = match pool.errors_if_no_space() {
            true => "error_if_no_space",
            false => "queue_if_no_space",
        };
        let needs_check = match pool.metadata.read().metadata.needs_check() {
            true => "needs_check",
            false => "-",
        };
        write!(
            out,
            "{} {discards} {no_space} {needs_check} {} ",
            pool.mode().status_word(),
            Self::metadata_threshold(&self.metadata_dev)
        )
    }

    fn write_table(&self, out: &mut Output<'_>) -> fmt::Result {
        write!(
            out,
            "{} {} {} {} ",
            self.metadata_dev.number(),
            self.data_dev.number(),
            self.pool.block_size.sectors(),
            self.binding.low_water_blocks
        )?;
        self.binding.requested.emit(out)
    }

    /// Turns passdown off where the data device cannot discard whole blocks.
    fn check_passdown(&self) {
        if !self.binding.passdown.load(Relaxed) {
            return;
        }
        let max = self.data_dev.max_discard_sectors();
        let reason = if max == 0 {
            "discard unsupported"
        } else if max < self.pool.block_size.sectors() {
            "max discard sectors smaller than a block"
        } else {
            return;
        };
        dm::log::warn!(
            LOG_PREFIX,
            "Data device ({}) {reason}: Disabling discard passdown.",
            self.data_dev.name()
        );
        self.binding.passdown.store(false, Relaxed);
    }
}

#[vtable]
impl Target for PoolTarget {
    const NAME: &'static CStr = c"thin-pool";
    const VERSION: [u32; 3] = crate::VERSION;
    const FEATURES: TargetFeatures = TargetFeatures::SINGLETON
        .or(TargetFeatures::ALWAYS_WRITEABLE)
        .or(TargetFeatures::IMMUTABLE)
        .or(TargetFeatures::PASSES_CRYPTO)
        .or(TargetFeatures::NOWAIT);
    type Module = DmThin;
    type PerBio = ();

    fn ctr(ctr: &mut Ctr<'_>, args: Args<'_>) -> Result<Pin<KBox<Self>>> {
        let (Some(metadata_path), Some(data_path), Some(block_size), Some(low_water)) =
            (args.get(0), args.get(1), args.get(2), args.get(3))
        else {
            return Err(ctr.error(c"Invalid argument count", EINVAL));
        };
        if metadata_path == data_path {
            return Err(ctr.error(c"Error setting metadata or data device", EINVAL));
        }
        let mut rest = args;
        rest.consume(4)?;
        let requested = Features::parse(ctr, &mut rest)?;

        let mode = match requested.read_only {
            true => OpenMode::READ,
            false => OpenMode::READ_WRITE,
        };
        let metadata_dev = ctr
            .get_device(metadata_path, mode)
            .map_err(|e| ctr.error(c"Error opening metadata block device", e))?;
        Self::warn_if_too_big(&metadata_dev);
        let data_dev = ctr
            .get_device(data_path, OpenMode::READ_WRITE)
            .map_err(|e| ctr.error(c"Error getting data device", e))?;
        // Under two names.
        if metadata_dev.is_same(&data_dev) {
            return Err(ctr.error(c"Error setting metadata or data device", EINVAL));
        }

        let block_size = parse_ulong(block_size)
            .ok()
            .and_then(|sectors| BlockSize::new(sectors as u64))
            .ok_or_else(|| ctr.error(c"Invalid block size", EINVAL))?;
        let low_water_blocks =
            parse_u64(low_water).map_err(|_| ctr.error(c"Invalid low water mark", EINVAL))?;

        let (pool, created) = PoolRef::find_or_create(PoolParams {
            md: ctr.md_id(),
            name: ctr.name(),
            metadata_dev: metadata_dev.clone(),
            data_dev: data_dev.clone(),
            block_size,
            read_only: requested.read_only,
            discard_enabled: requested.discard_enabled,
        })
        .map_err(|(reason, e)| ctr.error(reason, e))?;
        if !created && requested.discard_enabled != pool.discard_enabled {
            let reason = c"Discard support cannot be disabled once enabled";
            return Err(ctr.error(reason, EINVAL));
        }

        ctr.set_num_flush_bios(1);
        ctr.set_num_write_zeroes_bios(1);
        ctr.set_limit_swap_bios(true);
        if requested.discard_enabled && requested.discard_passdown {
            ctr.set_num_discard_bios(1);
            ctr.set_discards_supported(true);
            ctr.set_max_discard_granularity(true);
        }

        let threshold = Self::metadata_threshold(&metadata_dev);
        let watched = pool.changes().write().metadata.set_threshold(threshold);
        watched.map_err(|e| ctr.error(c"Error registering metadata threshold", e.into()))?;

        let binding = Binding::new(ctr.handle().clone(), requested, low_water_blocks);
        Ok(KBox::pin(
            Self {
                pool,
                binding: Arc::new(binding, GFP_KERNEL)?,
                metadata_dev,
                data_dev,
            },
            GFP_KERNEL,
        )?)
    }

    fn map(&self, mut bio: Bio<()>) -> Map<()> {
        bio.set_dev(&self.data_dev);
        Map::Remapped(bio)
    }

    fn presuspend(&self) {
        self.pool.set_suspended(true);
        self.pool.suspend_thins();
    }

    fn presuspend_undo(&self) {
        self.pool.resume_thins();
        self.pool.set_suspended(false);
    }

    fn postsuspend(&self) {
        self.pool.stop_work();
        self.pool.commit_or_probe();
    }

    fn preresume(&self) -> Result {
        match self.bind_and_resize() {
            // A failed pool cannot be replaced while bios wait in it, so let it resume and end them.
            Err(_) if self.pool.mode() == Mode::Fail => Ok(()),
            result => result,
        }
    }

    fn resume(&self) {
        // Thins first: their bios must be on their way before new ones come.
        self.pool.retry_bios();
        self.pool.resume_thins();
        self.pool.rearm_low_water_mark();
        self.pool.set_suspended(false);
        self.pool.start_waker();
    }

    fn message(&self, msg: &mut Message<'_>) -> Result {
        crate::message::handle(&self.pool, msg)
    }

    fn status(&self, kind: StatusKind, flags: StatusFlags, out: &mut Output<'_>) -> fmt::Result {
        match kind {
            StatusKind::Info => self.write_status(flags, out),
            StatusKind::Table => self.write_table(out),
            StatusKind::Ima => Ok(()),
        }
    }

    fn iterate_devices(&self, each: &mut EachDevice<'_>) -> Result<(), Stop> {
        each.call(&self.data_dev, 0, self.binding.ti.len())
    }

    fn io_hints(&self, limits: &mut Limits) {
        let block_sectors = self.pool.block_size.sectors();

        // The largest I/O shall be a power of two that divides a block, if it is smaller than that: then the
        // I/Os of a block that is a stripe of a RAID device add up to whole stripes.
        let mut max = limits.max_sectors();
        if max < block_sectors {
            while max > 1 && !block_sectors.is_multiple_of(max) {
                if max.is_power_of_two() {
                    max -= 1;
                }
                max = 1 << max.ilog2();
            }
            limits.set_max_sectors(max);
        }

        let opt = limits.io_opt() >> dm::SECTOR_SHIFT;
        if opt < block_sectors || !opt.is_multiple_of(block_sectors) {
            let min = match max != 0 && block_sectors.is_multiple_of(max) {
                true => max,
                false => block_sectors,
            };
            limits.set_io_min(min << dm::SECTOR_SHIFT);
            limits.set_io_opt(block_sectors << dm::SECTOR_SHIFT);
        }

        if self.binding.requested.discard_enabled {
            self.check_passdown();
            if !self.binding.passdown.load(Relaxed) {
                limits.set_max_hw_discard_sectors(0);
            }
        } else {
            limits.set_discard_granularity(0);
        }
        // A data device that has lost its write-zeroes since it was made goes on to promise that they unmap, which the
        // core takes for nonsense in a new table. Nobody asks the pool itself for them.
        limits.set_max_hw_wzeroes_unmap_sectors(0);
    }
}

impl Drop for PoolTarget {
    fn drop(&mut self) {
        self.pool.unbind(&self.binding.ti);
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_thin_pool_target)]
mod tests {
    use super::*;
    use crate::thin_target::ThinTarget;

    /// Nothing but inline encryption hardware shows this one.
    #[test]
    fn inline_encryption_passes() {
        let has = |features: TargetFeatures| features.or(TargetFeatures::PASSES_CRYPTO) == features;
        assert!(has(PoolTarget::FEATURES));
        assert!(has(ThinTarget::FEATURES));
    }
}
