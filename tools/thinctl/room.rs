// SPDX-License-Identifier: GPL-2.0

//! Whether a pool has room for what is to be written.
//!
//! A pool that runs full holds up all that is written to it, by others, too. So what is to come is compared with what is
//! free before it begins; and as others write meanwhile, each piece of it is, too.

use std::sync::Arc;

use rustix::io::Errno;

use crate::{
    dm::Dm,
    error::{
        Error,
        Result, //
    },
    pool::Pool,
    session::Session,
    usage, //
};

/// The mode of a pool without a free block, as its status tells.
const FULL: &str = "out_of_data_space";

/// What is free in a pool.
#[derive(Clone)]
pub struct Room {
    dm: Arc<Dm>,
    pool: Pool,
    /// Whether it is to be left at what the pool says.
    anyway: bool,
}

impl Room {
    /// That of a session's pool. Nothing is compared if it is to be tried `anyway`.
    pub fn new(session: &Session, anyway: bool) -> Self {
        Self::of(session.dm.clone(), session.pool.clone(), anyway)
    }

    /// That of a pool.
    pub fn of(dm: Arc<Dm>, pool: Pool, anyway: bool) -> Self {
        Self { dm, pool, anyway }
    }

    /// Gives an error if so many bytes of data, which are yet to come, cannot fit.
    pub fn check(&self, bytes: u64) -> Result {
        self.check_over(bytes, 0)
    }

    /// As [`check`](Self::check), where so many blocks are given up before, or written to without taking up others.
    pub fn check_over(&self, bytes: u64, given_up: u64) -> Result {
        let blocks = bytes.div_ceil(self.pool.block_size);
        self.compare(blocks, given_up, || {
            format!("{} are to come", usage::bytes(bytes))
        })
    }

    /// Gives an error if the pool could run full of a write.
    pub fn check_write(&self, offset: u64, len: u64) -> Result {
        let first = offset / self.pool.block_size;
        let end = offset.saturating_add(len).div_ceil(self.pool.block_size);
        self.compare(end.saturating_sub(first), 0, || {
            "there is more to come".to_owned()
        })
    }

    fn compare(&self, blocks: u64, given_up: u64, what: impl FnOnce() -> String) -> Result {
        if self.anyway {
            return Ok(());
        }
        let status = self.pool.status(&self.dm)?;
        let free = status.data_blocks.saturating_sub(status.used_data_blocks);
        let is_full = status.mode == FULL && given_up == 0;
        if blocks <= free.saturating_add(given_up) && !is_full {
            return Ok(());
        }
        let free = usage::bytes(free.saturating_mul(self.pool.block_size));
        Err(Error::NoRoom(format!(
            "pool {} has no room: {}, and {free} are free; --anyway tries all the same",
            self.pool.name,
            what()
        )))
    }

    /// Gives an error if so many bytes cannot fit that are written to devices which lie on volumes of the pool.
    pub fn check_below(&self, bytes: u64) -> Result {
        let blocks = bytes.div_ceil(self.pool.block_size);
        self.compare(blocks, 0, || {
            format!(
                "the device lies on a volume of it, and what is written may take up {}",
                usage::bytes(bytes)
            )
        })
    }

    /// The pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Names what a failed write means.
    pub fn explain(&self, e: Error) -> Error {
        match e.errno() {
            Some(Errno::NOSPC) => Error::NoRoom(format!("pool {} has run full", self.pool.name)),
            _ => e,
        }
    }
}
