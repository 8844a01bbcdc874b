// SPDX-License-Identifier: GPL-2.0

//! The room in the pools on whose volumes a device lies, for what is written to the device.
//!
//! What their volumes have mapped already does not count, as it may be shared. And that the device's blocks begin where
//! those of a pool do is not known: a write may touch one more than it would need.

use std::sync::Arc;

use crate::{
    dm::Dm,
    error::{
        Error,
        Result, //
    },
    pool::Pool,
    room::Room,
    stack::Thin, //
};

/// The pools below a device. There is none below most.
#[derive(Clone)]
pub struct Below {
    pools: Vec<One>,
}

/// A pool on whose volumes a device lies.
#[derive(Clone)]
struct One {
    room: Room,
    /// How much is seen of each of its volumes, in bytes.
    volumes: Vec<u64>,
}

impl Below {
    /// The pools of `thins`, which must all take writes. Nothing is compared if it is to be tried `anyway`.
    pub fn of(dm: &Arc<Dm>, thins: &[Thin], anyway: bool) -> Result<Self> {
        let mut pools: Vec<One> = Vec::new();
        for thin in thins {
            let known = pools
                .iter_mut()
                .find(|one| one.room.pool().device == thin.pool);
            if let Some(one) = known {
                one.volumes.push(thin.size);
                continue;
            }
            let name = dm.name(thin.pool)?.ok_or_else(|| {
                let (device, pool) = (&thin.device, thin.pool);
                Error::NotFound(format!("{device}: its pool {pool} is not there"))
            })?;
            let pool = Pool::find(dm, &name)?;
            pool.check_writable(dm)?;
            pools.push(One {
                room: Room::of(dm.clone(), pool, anyway),
                volumes: vec![thin.size],
            });
        }
        Ok(Self { pools })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    /// Gives an error if a pool has no room for the first `size` bytes of the device.
    pub fn check_all(&self, size: u64) -> Result {
        self.check(|_| Ok(size))
    }

    /// Gives an error if a pool has no room for what is written here and there: `count` says how many blocks of a size in
    /// bytes that touches.
    pub fn check_blocks(&self, mut count: impl FnMut(u64) -> Result<u64>) -> Result {
        self.check(|block| Ok(count(block)?.saturating_mul(block)))
    }

    /// `wanted` says how many bytes are to come, for blocks of so many.
    fn check(&self, mut wanted: impl FnMut(u64) -> Result<u64>) -> Result {
        self.pools.iter().try_for_each(|one| {
            let block = one.room.pool().block_size;
            let wanted = wanted(block)?;
            // What is seen of a volume may begin and end within a block.
            let ends = block.saturating_mul(2);
            let each = one
                .volumes
                .iter()
                .map(|volume| (*volume).min(wanted).saturating_add(ends));
            one.room
                .check_below(each.fold(0, |sum: u64, bytes| sum.saturating_add(bytes)))
        })
    }

    /// Gives an error if a pool could run full of the next `len` bytes.
    pub fn check_write(&self, len: u64) -> Result {
        self.pools.iter().try_for_each(|one| {
            // On each volume it need not begin where a block does.
            let volumes = one.volumes.len() as u64;
            let more = one.room.pool().block_size.saturating_mul(volumes);
            one.room.check_below(len.saturating_add(more))
        })
    }
}
