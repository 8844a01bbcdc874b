// SPDX-License-Identifier: GPL-2.0

//! Whose turn it is to suspend a volume.
//!
//! Two processes that suspend one device know nothing of each other: one resumes what the other one relies on. So a file
//! for each volume is locked by whoever suspends it, and also by whoever replaces or deletes it. lvm2 does the same with
//! a file for each volume group, which is locked in the way that lvm2 does it.
//!
//! Locks are taken in this order: the volume's, the volume group's, that of the pool's metadata snapshot. Who has the others
//! does not wait for the last one, as that may be long.

use std::{
    path::Path,
    time::Duration, //
};

use crate::{
    error::Result,
    home::{
        Home,
        Lock, //
    },
    lvm2,
    pool::Pool,
    quiet::Unhalted, //
};

/// How long to wait for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where lvm2 has its locks.
const LVM2: &str = "/run/lock/lvm";

/// A lock whose file is removed with it.
struct Passing {
    home: Home,
    name: String,
    _lock: Lock,
}

impl Passing {
    fn take(home: &Home, name: String) -> Result<Self> {
        Ok(Self {
            _lock: home.lock(&name, PATIENCE)?,
            home: home.clone(),
            name,
        })
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        // Nobody else can have locked it meanwhile; that it stays does no harm.
        let _ = self.home.remove(&self.name);
    }
}

/// The turn of this process, until it is dropped.
pub struct Turn {
    // lvm2's is given back first.
    _group: Option<Passing>,
    _volume: Passing,
    // Whoever waits for one of them does not wait for this process to be told to go on.
    _unhalted: Unhalted,
}

impl Turn {
    /// Waits for the turn with volume `id` of `pool`, whose folder in `/run` is `run`. `settle` is called before anything of
    /// lvm2 is locked.
    pub fn take(run: &Home, pool: &Pool, id: u32, settle: impl FnOnce() -> Result) -> Result<Self> {
        let unhalted = Unhalted::begin();
        let volume = Passing::take(run, format!("volume-{id}.lock"))?;
        settle()?;
        let group = match pool.is_of_lvm2() {
            true => Some(lock_group(&lvm2::names(&pool.name).0)?),
            false => None,
        };
        Ok(Self {
            _group: group,
            _volume: volume,
            _unhalted: unhalted,
        })
    }
}

fn lock_group(group: &str) -> Result<Passing> {
    let home = Home::at(Path::new(LVM2))?;
    let file = format!("V_{group}");
    // Who waits for the file holds this one, so that whoever only reads does not get in between.
    let _queue = Passing::take(&home, format!("{file}:aux"))?;
    Passing::take(&home, file)
}
