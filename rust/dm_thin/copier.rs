// SPDX-License-Identifier: GPL-2.0

//! Filling new data blocks.

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
    BlkStatus, //
};
use kernel::prelude::*;
use thin_metadata::DataBlock;

use crate::{
    block_size::BlockSize,
    mapping::{
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
    type Ptr = KBox<Job<Self>>;

    fn done(job: Self::Ptr, outcome: Outcome) {
        let (preparing, pool) = Preparing::from_job(job);
        let Some(pool) = pool else {
            return;
        };
        let mapping = preparing.mapping();
        // kcopyd gives up if the device turns out not to have the write-zeroes that it promises.
        let dev = &mapping.thin.pool_dev;
        let is_ok = outcome.is_ok()
            || mapping.zeroes && dev.has_write_zeroes() && {
                let sector = pool.block_size.to_sectors(mapping.data);
                dev.zero_out(sector, pool.block_size.sectors().into())
                    .is_ok()
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

    /// Copies data block `from` to the new one. The mapping goes to the pool's worker when that is done.
    pub(crate) fn copy_block(&self, from: DataBlock, to: Preparing) {
        let dev = to.mapping().thin.pool_dev.clone();
        let sector = self.block_size.to_sectors(to.mapping().data);
        self.client.copy::<Node>(
            to.into_job(),
            Region {
                dev: &dev,
                sector: self.block_size.to_sectors(from),
            },
            Region { dev: &dev, sector },
            u64::from(self.block_size.sectors()),
            Flags::NONE,
        );
    }

    /// Zeroes the new data block. The mapping goes to the pool's worker when that is done.
    pub(crate) fn zero_block(&self, to: Preparing) {
        let dev = to.mapping().thin.pool_dev.clone();
        let sector = self.block_size.to_sectors(to.mapping().data);
        self.client.zero::<Node>(
            to.into_job(),
            Region { dev: &dev, sector },
            u64::from(self.block_size.sectors()),
            Flags::NONE,
        );
    }
}
