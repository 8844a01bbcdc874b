// SPDX-License-Identifier: GPL-2.0

//! Work with one pool: its metadata, snapshots of volumes, and devices for them.

mod snap;
mod suspend;

use std::{
    cell::{
        Cell,
        RefCell, //
    },
    path::{
        Path,
        PathBuf, //
    },
    sync::Arc, //
};

use devicemapper::Device;
use rustix::io::Errno;

use thin_metadata::format::SECTOR_SIZE;

use crate::{
    device::Device as Opened,
    dm::{
        Dm,
        Info,
        Line, //
    },
    error::{
        Error,
        Result, //
    },
    guard::Guard,
    home::Home,
    identity::Identity,
    journal::{
        Entry,
        Journal, //
    },
    lvm2::{
        self,
        FIRST_OWN_ID, //
    },
    naming::device_id,
    pool::{
        ActiveVolume,
        Pool, //
    },
    quiet,
    signals,
    state,
    tell::tell, //
};
pub use snap::{
    Metadata,
    MetadataSnap,
    Slot, //
};
pub use suspend::check_no_other_table;

/// A pool, and what this process has to undo in it.
pub struct Session {
    /// The way to device-mapper.
    pub dm: Arc<Dm>,
    /// The pool.
    pub pool: Pool,
    /// What is remembered of it.
    pub home: Home,
    /// What is remembered of it until the machine stops.
    run: Home,
    /// Where all homes are, and all folders of the other kind.
    roots: [PathBuf; 2],
    journal: Arc<Journal>,
    /// Devices that are suspended.
    suspended: Arc<Journal>,
    /// Whether this process keeps the metadata snapshot for itself also while it does not have it.
    keeps_slot: Cell<bool>,
    /// How many devices are suspended.
    held: Cell<u32>,
    /// Started before the first device is suspended, and again if it is gone.
    guard: RefCell<Option<Guard>>,
    /// Whether a metadata snapshot that somebody else has taken may be released.
    force: bool,
}

impl Session {
    /// Begins work with the pool `name`, with files below `home` and, for what is of no use after the machine has stopped,
    /// below `run`. What earlier processes have left is undone.
    pub fn open(home: &Path, run: &Path, name: &str, force: bool) -> Result<Self> {
        let roots = [home.to_owned(), run.to_owned()];
        let dm = Arc::new(Dm::new()?);
        let pool = Pool::find(&dm, name)?;
        let (home, run) = (Home::open(home, &pool)?, Home::open(run, &pool)?);
        // Devices that are suspended are known by their names, whatever has become of the pool.
        Journal::recover(&dm, &pool, &run)?;
        Identity::check(&home, &pool)?;
        Journal::recover(&dm, &pool, &home)?;
        let [journal, suspended] = Journal::begin(&dm, &pool, [&home, &run])?;
        signals::undo_on_signal(suspended.clone(), journal.clone());
        Ok(Self {
            dm,
            pool,
            home,
            run,
            roots,
            journal,
            suspended,
            keeps_slot: Cell::new(false),
            held: Cell::new(0),
            guard: RefCell::new(None),
            force,
        })
    }

    /// Sends a message to the pool.
    pub fn message(&self, message: &str) -> Result {
        self.dm.message(&self.pool.name, message)
    }

    /// The volumes that are active under an id.
    pub fn active(&self, id: u32) -> Result<Vec<ActiveVolume>> {
        let mut volumes = self.pool.active_volumes(&self.dm)?;
        volumes.retain(|volume| volume.id == id);
        Ok(volumes)
    }

    /// The size of a volume in bytes, if it is active: the metadata do not tell.
    pub fn active_size(&self, id: u32) -> Result<Option<u64>> {
        Ok(self.active(id)?.iter().map(|volume| volume.size).max())
    }

    /// Gives an error if volume `id` is active.
    pub fn check_inactive(&self, id: u32) -> Result {
        match self.active(id)?.first() {
            Some(volume) => Err(Error::Busy(format!(
                "volume {id} of pool {} is active as {}",
                self.pool.name, volume.info.name
            ))),
            None => Ok(()),
        }
    }

    /// Gives an error if volume `id` can be written to by others.
    pub fn check_not_written(&self, id: u32) -> Result {
        match self.active(id)?.iter().find(|v| !v.info.read_only) {
            Some(volume) => Err(Error::Refused(format!(
                "volume {id} is active as {}, where it can be written to; take a snapshot of it (thinctl snapshot)",
                volume.info.name
            ))),
            None => Ok(()),
        }
    }

    /// Makes a device for a volume, of which `size` bytes are seen. It goes when it is dropped.
    pub fn activate(&self, id: u32, size: u64, read_only: bool) -> Result<Activation> {
        self.activate_words(id, size, self.pool.thin_words(id), read_only)
    }

    /// As [`activate`](Self::activate), for writing, with an external origin.
    pub fn activate_over(&self, id: u32, size: u64, origin: Device) -> Result<Activation> {
        let words = self.pool.thin_words_over(id, Some(origin));
        self.activate_words(id, size, words, false)
    }

    fn activate_words(
        &self,
        id: u32,
        size: u64,
        words: String,
        read_only: bool,
    ) -> Result<Activation> {
        let name = format!("thinctl-{id}-{}", state::random_hex(4)?);
        let line = Line {
            start: 0,
            sectors: size.div_ceil(SECTOR_SIZE),
            target: "thin".to_owned(),
            words,
        };
        let entry = Entry::Device { name: name.clone() };
        let info = self
            .journal
            .enter(entry.clone(), || self.dm.create(&name, &line, read_only))?;
        Ok(Activation {
            dm: self.dm.clone(),
            journal: self.journal.clone(),
            entry,
            info,
        })
    }

    /// Makes an empty volume, which goes when this process ends unless it is [kept](Self::keep).
    pub fn new_volume(&self) -> Result<u32> {
        let (id, ()) = self.new_id(|id| self.message(&format!("create_thin {id}")))?;
        Ok(id)
    }

    /// Takes a snapshot of a volume, which goes when this process ends unless it is [kept](Self::keep).
    pub fn snapshot(&self, origin: u32) -> Result<u32> {
        // Its id is written down before anything is suspended.
        let (id, unsure) = self.new_id(|id| match self.quiet_snapshot(id, origin) {
            Err(e) if e.errno() == Some(Errno::NODATA) => Err(self.no_volume(origin)),
            result => result,
        })?;
        if let Some(e) = unsure {
            // It stays noted until it is gone. What it is noted in may lie on what could not be resumed.
            if !quiet::any_suspended() {
                let _ = self.delete(id);
            }
            return Err(e);
        }
        self.note_stamp();
        Ok(id)
    }

    /// Takes a snapshot with an id of somebody's choice.
    pub fn snapshot_as(&self, id: u32, origin: u32) -> Result {
        lvm2::check_snapshots(&self.pool, id)?;
        if let Some(e) = self.taken_as(id, origin, self.quiet_snapshot(id, origin))? {
            self.pool.delete(&self.dm, id)?;
            return Err(e);
        }
        self.note_stamp();
        Ok(())
    }

    /// As [`snapshot_as`](Self::snapshot_as), of a volume that is not active, and without waiting for anybody: for while a
    /// device is suspended.
    pub fn snapshot_inactive_as(&self, id: u32, origin: u32) -> Result {
        lvm2::check_snapshots(&self.pool, id)?;
        self.check_inactive(origin)?;
        self.taken_as(id, origin, self.message(&create_snap(id, origin)))
    }

    /// Takes a snapshot while all devices of its origin are suspended. Gives what has failed after it was taken: it must be
    /// deleted then.
    fn quiet_snapshot(&self, id: u32, origin: u32) -> Result<Option<Error>> {
        let mut is_taken = false;
        let result = self.quiesced(origin, || {
            self.message(&create_snap(id, origin))?;
            is_taken = true;
            Ok(())
        });
        match result {
            Err(e) if is_taken => Ok(Some(e)),
            result => result.map(|()| None),
        }
    }

    fn taken_as<X>(&self, id: u32, origin: u32, result: Result<X>) -> Result<X> {
        match result {
            Err(e) if e.errno() == Some(Errno::EXIST) => Err(self.exists_already(id)),
            Err(e) if e.errno() == Some(Errno::NODATA) => Err(self.no_volume(origin)),
            result => result,
        }
    }

    /// Remembers how far the pool is.
    pub fn note_stamp(&self) {
        // What cannot be noted now is with the next metadata snapshot.
        let _ = self
            .pool
            .stamp()
            .and_then(|now| Identity::note(&self.home, now));
    }

    /// Takes a snapshot of a volume of no use, after which whatever is made is newer than what there is.
    pub fn advance(&self) -> Result {
        let volume = self.new_volume()?;
        // Nobody knows of it, so it is not active.
        let (snapshot, ()) = self.new_id(|id| self.message(&create_snap(id, volume)))?;
        self.delete(snapshot)?;
        self.delete(volume)
    }

    /// An id for a volume of thinctl's own, which there is none of.
    pub fn free_id(&self) -> Result<u32> {
        loop {
            let id = random_id()?;
            if !self.exists(id)? {
                return Ok(id);
            }
        }
    }

    fn new_id<X>(&self, create: impl Fn(u32) -> Result<X>) -> Result<(u32, X)> {
        loop {
            let id = random_id()?;
            match self.journal.enter(Entry::Volume { id }, || create(id)) {
                Err(e) if e.errno() == Some(Errno::EXIST) => continue,
                result => return result.map(|made| (id, made)),
            }
        }
    }

    /// Whether there is a volume of this id.
    pub fn exists(&self, id: u32) -> Result<bool> {
        let snap = self.metadata_snap()?;
        let exists = snap.view()?.device(device_id(id)?)?.is_some();
        snap.release()?;
        Ok(exists)
    }

    /// When a volume was made, in snapshots of its pool; `None` if there is none.
    pub fn creation_time(&self, id: u32) -> Result<Option<u32>> {
        self.glance(|view| {
            let there = view.device(device_id(id)?)?;
            Ok(there.map(|there| there.creation_time.get()))
        })
    }

    /// The error of a volume that must not be there.
    pub fn exists_already(&self, id: u32) -> Error {
        Error::Refused(format!(
            "there is a volume {id} in pool {} already: choose another id",
            self.pool.name
        ))
    }

    /// The error of a volume that must be there.
    pub fn no_volume(&self, id: u32) -> Error {
        Error::NotFound(format!(
            "there is no volume {id} in pool {0}; `thinctl ls {0}` lists those that there are",
            self.pool.name
        ))
    }

    /// Lets a volume stay that this process has made, after `action`, which notes it elsewhere.
    pub fn keep(&self, id: u32, action: impl FnOnce() -> Result) -> Result {
        self.journal.keep(&Entry::Volume { id }, action)
    }

    /// Deletes a volume; that there is none is no error.
    pub fn delete(&self, id: u32) -> Result {
        if !lvm2::is_own(id) {
            lvm2::check_deletes(&self.pool, id)?;
        }
        self.journal
            .keep(&Entry::Volume { id }, || self.pool.delete(&self.dm, id))
    }
}

/// The message that takes a snapshot.
pub fn create_snap(id: u32, origin: u32) -> String {
    format!("create_snap {id} {origin}")
}

/// An id in the upper half.
fn random_id() -> Result<u32> {
    let digits = state::random_hex(3)?;
    // Six digits are 24 bits, as many as an id has.
    Ok(u32::from_str_radix(&digits, 16).unwrap_or(0) | FIRST_OWN_ID)
}

impl Drop for Session {
    fn drop(&mut self) {
        self.suspended.finish();
        if self.leave_suspended() {
            self.journal.finish();
        }
        signals::undone(&self.suspended);
    }
}

/// A device for a volume, until it is dropped.
pub struct Activation {
    dm: Arc<Dm>,
    journal: Arc<Journal>,
    entry: Entry,
    info: Info,
}

impl Activation {
    /// Opens its node by `open`. An error if that leads to another device: somebody may have removed this one, and its number
    /// is given out again. It is not removed while it is open.
    pub fn open(&self, open: impl FnOnce(&Path) -> Result<Opened>) -> Result<Opened> {
        let device = open(&self.info.path())?;
        let there = self.dm.info(&self.info.name)?;
        match there.is_some_and(|there| there.device == self.info.device) {
            true => Ok(device),
            false => Err(Error::Busy(format!(
                "somebody else has removed {}",
                self.info.name
            ))),
        }
    }

    /// Removes it; whoever used it must have closed it.
    pub fn remove(self) -> Result {
        self.journal.undo(&self.entry)
    }
}

impl Drop for Activation {
    fn drop(&mut self) {
        if let Err(e) = self.journal.undo(&self.entry) {
            tell(e);
        }
    }
}
