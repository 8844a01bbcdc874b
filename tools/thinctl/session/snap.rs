// SPDX-License-Identifier: GPL-2.0

//! The metadata of a pool, to look at.
//!
//! A pool has one metadata snapshot at most, so processes take it one after the other, and each has it for a short time.

use std::{
    sync::Arc,
    time::{
        Duration,
        Instant, //
    },
};

use rustix::io::Errno;

use persistent_data::direct::DirectBm;
use thin_metadata::{
    format::{
        Superblock,
        SUPERBLOCK_LOCATION, //
    },
    View,
};

use super::Session;
use crate::{
    error::{
        Error,
        Result, //
    },
    home::Lock,
    identity::Identity,
    journal::{
        self,
        Entry,
        Journal, //
    },
    pool::{
        Stamp,
        READ_ONLY, //
    },
    signals,
    tell::tell,
    turn::Turn, //
};

/// The lock of who has the metadata snapshot.
const SLOT: &str = "slot.lock";

/// How long to wait for another process to be done with the metadata snapshot.
const SLOT_PATIENCE: Duration = Duration::from_secs(600);

impl Session {
    /// Takes the pool's metadata snapshot, of which there is one at most. It is released when it is dropped.
    pub fn metadata_snap(&self) -> Result<MetadataSnap> {
        self.pool.check_writable(&self.dm)?;
        self.take_metadata_snap()
    }

    /// Calls `f` with the metadata of this moment. For what is done at once: nothing else happens in between.
    pub fn glance<X>(&self, f: impl FnOnce(&View<'_, DirectBm>) -> Result<X>) -> Result<X> {
        self.pool.check_writable(&self.dm)?;
        let snap = self.reserve_metadata_snap()?;
        let result = f(&snap.view()?)?;
        snap.release()?;
        Ok(result)
    }

    /// Does what the metadata of this moment say is right: `f` looks, and `action` is done if it says so, with nothing in
    /// between.
    pub fn glance_and_do(
        &self,
        f: impl FnOnce(&View<'_, DirectBm>) -> Result<bool>,
        action: impl FnOnce() -> Result,
    ) -> Result<bool> {
        self.pool.check_writable(&self.dm)?;
        let snap = self.reserve_metadata_snap()?;
        let is_right = f(&snap.view()?)?;
        snap.check()?;
        if is_right {
            action()?;
        }
        snap.release()?;
        Ok(is_right)
    }

    /// As [`metadata_snap`](Self::metadata_snap), of a pool that is not read-only.
    fn take_metadata_snap(&self) -> Result<MetadataSnap> {
        let snap = self.reserve_metadata_snap()?;
        self.journal.save()?;
        Ok(snap)
    }

    /// Takes the metadata snapshot, and does not save where it is.
    fn reserve_metadata_snap(&self) -> Result<MetadataSnap> {
        let lock = match self.keeps_slot.get() {
            true => None,
            false => {
                let lock = self.home.lock(SLOT, SLOT_PATIENCE)?;
                // Who held the lock before may have been killed meanwhile.
                Journal::recover(&self.dm, &self.pool, &self.home)?;
                Some(lock)
            }
        };
        Identity::check(&self.home, &self.pool)?;
        let entry = journal::metadata_snap_entry(&self.pool.metadata)?;
        let reserve = || {
            self.journal
                .enter(entry.clone(), || self.message("reserve_metadata_snap"))
        };
        let busy = || {
            Error::Busy(format!(
                "pool {} has a metadata snapshot that thinctl did not take; --force releases it",
                self.pool.name
            ))
        };
        // What is somebody else's must not be noted: whoever undoes it would release that.
        match (self.pool.status(&self.dm)?.metadata_snap, self.force) {
            (None, _) => {}
            (Some(_), true) => self.message("release_metadata_snap")?,
            (Some(_), false) => return Err(busy()),
        }
        match reserve() {
            Err(e) if e.errno() == Some(Errno::BUSY) => return Err(busy()),
            result => result?,
        }
        let mut snap = MetadataSnap {
            journal: self.journal.clone(),
            entry,
            root: 0,
            bm: None,
            checksum: 0,
            _lock: lock,
        };
        let status = self.pool.status(&self.dm)?;
        let Some(root) = status.metadata_snap else {
            return Err(Error::Busy(format!(
                "the metadata snapshot of pool {} was released by somebody else",
                self.pool.name
            )));
        };
        snap.root = root;
        if let Entry::MetadataSnap {
            time, transaction, ..
        } = snap.entry
        {
            let known = Entry::MetadataSnap {
                root: Some(root),
                time,
                transaction,
            };
            self.journal.amend(&snap.entry, known.clone());
            snap.entry = known;
        }
        let bm = DirectBm::open(&self.pool.metadata)?;
        if !self.keeps_slot.get() {
            Identity::note(&self.home, Stamp::at(&bm, root)?)?;
        }
        snap.checksum = Superblock::read(&bm, root)?.csum.get();
        snap.bm = Some(bm);
        Ok(snap)
    }

    /// The pool's metadata, to look at. A pool that is read-only takes no metadata snapshot, but nothing of its metadata
    /// changes, either.
    pub fn metadata(&self) -> Result<Metadata> {
        if self.pool.status(&self.dm)?.mode != READ_ONLY {
            return self.take_metadata_snap().map(Metadata::Snapshot);
        }
        let bm = DirectBm::open(&self.pool.metadata)?;
        Ok(Metadata::ReadOnly {
            checksum: Superblock::read(&bm, SUPERBLOCK_LOCATION)?.csum.get(),
            bm,
        })
    }

    /// To be called when all is read from it.
    pub fn release(&self, metadata: Metadata) -> Result {
        let checksum = match metadata {
            Metadata::Snapshot(snap) => return snap.release(),
            Metadata::ReadOnly { checksum, .. } => checksum,
        };
        let bm = DirectBm::open(&self.pool.metadata)?;
        if Superblock::read(&bm, SUPERBLOCK_LOCATION)?.csum.get() != checksum {
            return Err(Error::Busy(format!(
                "pool {} was read-only, and has changed while it was read",
                self.pool.name
            )));
        }
        Ok(())
    }

    /// Waits for the turn with a volume, and keeps the metadata snapshot for this process until it is dropped. Whoever has the
    /// one does not wait for the other: all who want to suspend the volume would wait, too, and lvm2.
    pub fn turn_with_slot(&self, id: u32) -> Result<(Turn, Slot<'_>)> {
        let begun = Instant::now();
        loop {
            let turn = self.turn(id)?;
            if let Some(lock) = self.home.try_lock(SLOT)? {
                // Nothing of others is dealt with while it is kept.
                Journal::recover(&self.dm, &self.pool, &self.home)?;
                self.keeps_slot.set(true);
                let slot = Slot {
                    session: self,
                    _lock: lock,
                };
                return Ok((turn, slot));
            }
            drop(turn);
            if begun.elapsed() >= SLOT_PATIENCE {
                return Err(Error::Busy(format!(
                    "another thinctl holds {}",
                    self.home.path(SLOT).display()
                )));
            }
            signals::sleep(Duration::from_millis(50))?;
        }
    }
}

/// The pool's metadata snapshot is for one process, until this is dropped.
pub struct Slot<'a> {
    session: &'a Session,
    _lock: Lock,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.session.keeps_slot.set(false);
    }
}

/// What [`Session::metadata`] gives.
pub enum Metadata {
    /// The metadata snapshot.
    Snapshot(MetadataSnap),
    /// The metadata of a pool that is read-only, and the checksum of their superblock.
    ReadOnly {
        /// Reads them.
        bm: DirectBm,
        /// So far.
        checksum: u32,
    },
}

impl Metadata {
    /// What it holds.
    pub fn view(&self) -> Result<View<'_, DirectBm>> {
        match self {
            Self::Snapshot(snap) => snap.view(),
            Self::ReadOnly { bm, .. } => Ok(View::new(bm)?),
        }
    }
}

/// The metadata snapshot of a pool, until it is dropped.
pub struct MetadataSnap {
    journal: Arc<Journal>,
    entry: Entry,
    /// Where it is.
    pub root: u64,
    bm: Option<DirectBm>,
    /// The checksum of its superblock.
    checksum: u32,
    _lock: Option<Lock>,
}

impl MetadataSnap {
    /// What it holds.
    pub fn view(&self) -> Result<View<'_, DirectBm>> {
        match &self.bm {
            Some(bm) => Ok(View::at(bm, self.root)?),
            None => Err(Error::Busy("there is no metadata snapshot".to_owned())),
        }
    }

    /// Releases it. If somebody else has done so before, what was read from it may be anything: that is an error.
    pub fn release(self) -> Result {
        let checked = self.check();
        self.journal.undo(&self.entry)?;
        checked
    }

    /// Gives an error if somebody else has released it.
    fn check(&self) -> Result {
        let is_there = self.journal.holds_metadata_snap(self.root)?
            && match &self.bm {
                Some(bm) => Superblock::read(bm, self.root)?.csum.get() == self.checksum,
                None => false,
            };
        match is_there {
            true => Ok(()),
            false => Err(Error::Busy(
                "the metadata snapshot was released by somebody else while it was read".to_owned(),
            )),
        }
    }
}

impl Drop for MetadataSnap {
    fn drop(&mut self) {
        // Nothing is undone twice: the entry is gone after that.
        if let Err(e) = self.journal.undo(&self.entry) {
            tell(e);
        }
    }
}
