// SPDX-License-Identifier: GPL-2.0

//! External origins.
//!
//! A thin device may have an external origin: a device outside of the pool that has the content of the blocks
//! that are not provisioned. Reads of such blocks go there; the first write to one copies it from there to a new
//! data block, unless the write covers all of it. The origin itself is never written to. Beyond its end there
//! are zeroes.
//!
//! A read on its way to the origin is not in [`InFlight`](crate::in_flight::InFlight). That set keeps data
//! blocks from being used again under bios that may still be on their way to them, and this bio uses none. Should
//! the block be provisioned in the meantime, the read still gives what the block held when it began, as nothing
//! changes the origin. A read that begins after the write has ended finds the mapping, which is there by then.

use core::ops::Range;

use dm::{
    kcopyd::Region,
    BlkStatus,
    Dev,
    MdId,
    Sector, //
};
use kernel::sync::{
    atomic::{
        ordering::Relaxed,
        Atomic, //
    },
    Arc, //
};

use crate::{
    mapping::Preparing,
    per_bio::ThinBio,
    pool::Pool,
    thin::Thin, //
};

/// The external origin of a thin device.
pub(crate) struct Origin {
    /// The device, open for reading.
    pub(crate) dev: Dev,
    /// If it is a mapped device, which one. It stays that for as long as it is open.
    pub(crate) md: Option<MdId>,
    /// What of it is used: its size when the thin device was last resumed.
    ///
    /// Nobody else's memory depends on it, and it does not change while bios are in flight, so any memory
    /// ordering will do.
    sectors: Atomic<u64>,
}

impl Origin {
    pub(crate) fn new(dev: Dev) -> Self {
        Self {
            md: dev.mapped_device().map(|md| md.id()),
            dev,
            sectors: Atomic::new(0),
        }
    }

    /// Asks the device for its size.
    pub(crate) fn update_size(&self) {
        self.sectors.store(self.dev.sectors(), Relaxed);
    }

    /// How many of these sectors the device has.
    pub(crate) fn overlap(&self, sectors: Range<Sector>) -> Sector {
        let end = sectors.end.min(self.sectors.load(Relaxed));
        end.saturating_sub(sectors.start)
    }
}

impl Thin {
    /// Reads what is not provisioned: turns `bio` to the external origin as far as that reaches, and gives
    /// zeroes beyond. A bio that comes back is to be submitted.
    pub(crate) fn read_unmapped(&self, mut bio: ThinBio) -> Option<ThinBio> {
        let (dev, len) = match &self.origin {
            Some(origin) => (
                Some(&origin.dev),
                origin.overlap(bio.sector()..bio.end_sector()),
            ),
            None => (None, 0),
        };
        if len < bio.len_sectors() {
            bio.zero_fill();
        }
        let (Some(dev), 1..) = (dev, len) else {
            bio.end(BlkStatus::OK);
            return None;
        };
        if bio.is_nowait() && !dev.has_nowait() {
            bio.end(BlkStatus::AGAIN);
            return None;
        }
        let sector = bio.sector();
        bio.truncate(len);
        bio.remap(dev, sector);
        Some(bio)
    }
}

impl Pool {
    /// Whether what is not mapped reads as zeroes, and goes on to when a part of it is written to. Only then may zeroes
    /// be kept by leaving it unmapped.
    pub(crate) fn keeps_zeroes_unmapped(&self, thin: &Thin) -> bool {
        thin.origin.is_none() && self.zeroes_new_blocks()
    }

    /// Copies to a new data block what the external origin has of it.
    pub(crate) fn copy_from_origin(self: &Arc<Self>, preparing: Preparing) {
        let mapping = preparing.mapping();
        let (thin, len) = (mapping.thin.clone(), mapping.from_origin);
        match &thin.origin {
            Some(Origin { dev, .. }) => {
                let sector = self.block_size.to_sectors(mapping.block);
                self.copier.copy(Region { dev, sector }, len, preparing);
            }
            None => self.finish(preparing.finish(BlkStatus::IOERR)),
        }
    }
}
