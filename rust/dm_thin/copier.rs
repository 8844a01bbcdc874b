// SPDX-License-Identifier: GPL-2.0

//! Filling new data blocks.

use core::ops::Range;

use dm::{
    kcopyd::{
        Client,
        Flags,
        Job,
        JobDone,
        Outcome,
        Region,
        Throttle, //
    },
    BlkStatus,
    Sector, //
};
use kernel::prelude::*;

use crate::{
    block_size::BlockSize,
    mapping::{
        NewMapping,
        Node,
        Preparing, //
    }, //
};

/// The share of time that copying may take, for all pools.
static THROTTLE: Throttle = Throttle::new(100);

dm::uint_param!(
    dm_thin_pool.snapshot_copy_throttle,
    THROTTLE.param(),
    "A percentage of time allocated for copy on write"
);

/// Copies and zeroes data blocks in the background.
pub(crate) struct Copier {
    client: Client,
    block_size: BlockSize,
}

impl JobDone for Node {
    fn done(job: KBox<Job<Self>>, outcome: Outcome) {
        let (preparing, pool) = Preparing::from_job(job);
        let Some(pool) = pool else {
            return;
        };
        let mapping = preparing.mapping();
        // kcopyd gives up if the device turns out not to have the write-zeroes that it promised. It may promise none by now,
        // so whether that is why is not asked: if it is not, this fails, too.
        let dev = &mapping.thin.pool.data_dev;
        let is_ok = outcome.is_ok()
            || !mapping.zeroes.is_empty() && {
                let (sector, len) = pool.copier.zeroed(mapping);
                dev.zero_out(sector, len).is_ok()
            };
        let prepared = preparing.finish(match is_ok {
            true => BlkStatus::OK,
            false => BlkStatus::IOERR,
        });
        pool.finish(prepared);
    }
}

impl Copier {
    pub(crate) fn new(block_size: BlockSize) -> Result<Self> {
        Ok(Self {
            client: Client::new(&THROTTLE)?,
            block_size,
        })
    }

    /// Copies `len` sectors to the beginning of the new data block. The mapping goes to the pool's worker when that
    /// is done.
    pub(crate) fn copy(&self, from: Region<'_>, len: Sector, to: Preparing) {
        let dev = to.mapping().thin.pool.data_dev.clone();
        let sector = self.block_size.to_sectors(to.mapping().data);
        let to_region = Region { dev: &dev, sector };
        self.client
            .copy::<Node>(to.into_job(), from, to_region, len, Flags::NONE);
    }

    /// Zeroes what is to be zeroed of the new data block. The mapping goes to the pool's worker when that is done.
    pub(crate) fn zero(&self, to: Preparing) {
        let dev = to.mapping().thin.pool.data_dev.clone();
        let (sector, len) = self.zeroed(to.mapping());
        let to_region = Region { dev: &dev, sector };
        self.client
            .zero::<Node>(to.into_job(), to_region, len, Flags::NONE);
    }

    /// The sectors of the data device that are zeroed for a mapping: the first one and how many.
    fn zeroed(&self, mapping: &NewMapping) -> (Sector, Sector) {
        let Range { start, end } = mapping.zeroes;
        let block = self.block_size.to_sectors(mapping.data);
        (block.saturating_add(start), end.saturating_sub(start))
    }
}
