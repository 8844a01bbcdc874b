// SPDX-License-Identifier: GPL-2.0

//! Work with one pool: its metadata, snapshots of volumes, and devices for them.

mod snap;

use std::{
    cell::{
        Cell,
        RefCell, //
    },
    path::{
        Path,
        PathBuf, //
    },
    sync::Arc,
    thread,
    time::{
        Duration,
        Instant, //
    },
};

use devicemapper::Device;
use rustix::io::Errno;

use thin_metadata::format::SECTOR_SIZE;

use crate::{
    backing,
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
    memory,
    naming::device_id,
    pool::{
        ActiveVolume,
        Pool, //
    },
    quiet,
    signals,
    state,
    tell::tell,
    turn::Turn, //
};
pub use snap::{
    Metadata,
    MetadataSnap,
    Slot, //
};

/// How long to wait until a guard has resumed what was suspended by who was killed.
const GUARD_PATIENCE: Duration = Duration::from_secs(60);

/// How long to try to resume a device.
const RESUME_PATIENCE: Duration = Duration::from_secs(5);

/// How often to look for devices of a volume that are not suspended yet.
const SUSPEND_TRIES: u32 = 4;

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
        self.new_id(|id| self.message(&format!("create_thin {id}")))
    }

    /// Takes a snapshot of a volume, which goes when this process ends unless it is [kept](Self::keep).
    pub fn snapshot(&self, origin: u32) -> Result<u32> {
        // Its id is written down before anything is suspended.
        let id = self.new_id(|id| match self.quiet_snapshot(id, origin) {
            Err(e) if e.errno() == Some(Errno::NODATA) => Err(self.no_volume(origin)),
            result => result,
        })?;
        self.note_stamp();
        Ok(id)
    }

    /// Takes a snapshot with an id of somebody's choice.
    pub fn snapshot_as(&self, id: u32, origin: u32) -> Result {
        lvm2::check_snapshots(&self.pool, id)?;
        self.taken_as(id, origin, self.quiet_snapshot(id, origin))?;
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

    /// Takes a snapshot while all devices of its origin are suspended; there is none if anything has failed.
    fn quiet_snapshot(&self, id: u32, origin: u32) -> Result {
        let mut is_taken = false;
        let result = self.quiesced(origin, || {
            self.message(&create_snap(id, origin))?;
            is_taken = true;
            Ok(())
        });
        if result.is_err() && is_taken {
            self.pool.delete(&self.dm, id)?;
        }
        result
    }

    fn taken_as(&self, id: u32, origin: u32, result: Result) -> Result {
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

    /// Lets all that users of a volume have written reach it: its devices are suspended for a moment.
    pub fn settle(&self, id: u32) -> Result {
        self.quiesced(id, || Ok(()))
    }

    /// Waits for the turn with a volume; nobody else suspends or replaces it until it is dropped.
    pub fn turn(&self, id: u32) -> Result<Turn> {
        Turn::take(&self.run, &self.pool, id, || {
            // What could not be resumed before is tried again: nobody else will as long as this process lives.
            for entry in self.suspended.all() {
                self.resume(&entry)?;
            }
            // Who had it before may have been killed. What it has suspended is resumed by its guard, maybe just now.
            let begun = Instant::now();
            loop {
                Journal::recover(&self.dm, &self.pool, &self.run)?;
                let active = self.active(id)?;
                let infos: Vec<Info> = active.into_iter().map(|v| v.info).collect();
                if !Journal::any_suspends(&self.run, &infos)? {
                    return Ok(());
                }
                // What this process could not take off its own list.
                self.suspended.save()?;
                if begun.elapsed() >= GUARD_PATIENCE {
                    return Err(Error::Busy(format!(
                        "another thinctl has suspended volume {id} of pool {}",
                        self.pool.name
                    )));
                }
                signals::check()?;
                thread::sleep(Duration::from_millis(20));
            }
        })
    }

    /// Runs `action` while all devices of a volume are suspended. It must write nothing but to devices. An error if somebody
    /// has resumed one meanwhile: what was written to the volume then may have got into what it shared by `action`.
    fn quiesced<X>(&self, id: u32, action: impl FnOnce() -> Result<X>) -> Result<X> {
        let _turn = self.turn(id)?;
        let mut suspended = Vec::new();
        let result = self
            .suspend_all(id, &mut suspended)
            .and_then(|()| action())
            .and_then(|done| self.check_suspended(id).map(|()| done));
        let mut resumed = Ok(());
        for entry in suspended.iter().rev() {
            resumed = resumed.and(self.resume(entry));
        }
        let result = result?;
        resumed?;
        Ok(result)
    }

    fn check_suspended(&self, id: u32) -> Result {
        let active = self.active(id)?;
        // What is read-only is not written to by whoever has just activated it.
        let runs = |info: &Info| !info.suspended && !info.read_only;
        match active.iter().find(|volume| runs(&volume.info)) {
            None => Ok(()),
            Some(volume) => Err(Error::Busy(format!(
                "somebody else has activated or resumed {}, which was to stay suspended for a moment",
                volume.info.name
            ))),
        }
    }

    /// Suspends all devices of a volume that are not, and adds them to `suspended`. When it returns, it has just seen that
    /// all are.
    fn suspend_all(&self, id: u32, suspended: &mut Vec<Entry>) -> Result {
        for _ in 0..SUSPEND_TRIES {
            let mut running = self.active(id)?;
            running.retain(|volume| !volume.info.suspended);
            // A device may have it more than once.
            running.dedup_by(|one, other| one.info.name == other.info.name);
            if running.is_empty() {
                return Ok(());
            }
            for volume in running {
                suspended.push(self.suspend(&volume)?);
            }
        }
        Err(Error::Busy(format!(
            "somebody else activates or resumes volume {id} of pool {} again and again",
            self.pool.name
        )))
    }

    /// Suspends a device until [`resume`](Self::resume), or the end of this process. For whoever has the
    /// [turn](Self::turn).
    pub fn suspend(&self, volume: &ActiveVolume) -> Result<Entry> {
        let name = &volume.info.name;
        self.start_guard()?;
        let run = self.run.path("");
        if backing::lies_on(&run, volume.info.device)? {
            return Err(Error::Refused(format!(
                "{} lies on {name}, which must be suspended: see --run",
                run.display()
            )));
        }
        // The guard has taken its time to start.
        let info = self.dm.info(name)?;
        let Some(info) = info.filter(|now| now.device == volume.info.device && !now.suspended)
        else {
            return Err(Error::Busy(format!(
                "somebody else has just removed, renamed or suspended {name}"
            )));
        };
        check_no_other_table(&info)?;
        quiet::begin();
        let suspended = self.suspended.suspend(&info);
        let (entry, number) = suspended.inspect_err(|_| quiet::end())?;
        self.held.set(self.held.get().saturating_add(1));
        if number == info.device {
            return Ok(entry);
        }
        self.resume(&entry)?;
        Err(Error::Busy(format!(
            "somebody else has just removed or renamed {name}"
        )))
    }

    /// Has a suspended device resumed after so long, see [`Guard::limit`]; or not any more.
    pub fn limit_suspension(&self, limit: Option<(Device, Duration)>) -> Result {
        match self.guard.borrow_mut().as_mut() {
            Some(guard) => guard.limit(limit),
            None => Ok(()),
        }
    }

    fn start_guard(&self) -> Result {
        let mut guard = self.guard.borrow_mut();
        if guard.as_mut().is_some_and(Guard::is_alive) {
            return Ok(());
        }
        memory::lock()?;
        let [home, run] = &self.roots;
        *guard = Some(Guard::start(
            home,
            run,
            &self.pool.name,
            self.journal.name(),
        )?);
        Ok(())
    }

    /// Does something to a device that is suspended; this process does not end meanwhile, which would resume it.
    pub fn holding_suspended<X>(&self, action: impl FnOnce() -> Result<X>) -> Result<X> {
        self.suspended.holding(action)
    }

    /// Resumes what [`suspend`](Self::suspend) has suspended.
    pub fn resume(&self, entry: &Entry) -> Result {
        let begun = Instant::now();
        let resumed = loop {
            let resumed = self.suspended.undo(entry);
            if !self.suspended.has(entry) {
                break resumed;
            }
            if begun.elapsed() >= RESUME_PATIENCE {
                return resumed;
            }
            thread::sleep(Duration::from_millis(50));
        };
        self.held.set(self.held.get().saturating_sub(1));
        quiet::end();
        if let Err(e) = resumed {
            // It is resumed, but could not be taken off the list, which is tried again before the next one is suspended.
            tell(e);
        }
        Ok(())
    }

    /// Whether a device is left that could not be resumed.
    pub fn has_suspended(&self) -> bool {
        self.held.get() > 0
    }

    /// Leaves the devices that this process cannot resume to its guard, and waits a little for that; whether none is suspended
    /// any more. If one is, all else that is to be undone is the guard's, too: the files for that may lie on the device.
    ///
    /// The guard begins once the lock of the notes and the pipe are closed, in this order. Between the two, whichever process
    /// comes by may do its work. This one does not touch the notes any more, and looks at the devices by their numbers.
    fn leave_suspended(&self) -> bool {
        let held = self.held.take();
        let left = self.suspended.leave();
        let numbers: Vec<Device> = left.iter().map(|(_, number)| *number).collect();
        // Some may be resumed and still be noted.
        let counted = u32::try_from(numbers.len()).unwrap_or(held).min(held);
        for _ in counted..held {
            quiet::end();
        }
        if numbers.is_empty() {
            return true;
        }
        quiet::leave(&numbers, counted);
        self.guard.take();
        let begun = Instant::now();
        while !quiet::look() {
            if begun.elapsed() >= RESUME_PATIENCE {
                for (name, _) in left {
                    tell(format_args!(
                        "{name} could not be resumed; a process in the background goes on trying, and so does the next run"
                    ));
                }
                return false;
            }
            thread::sleep(Duration::from_millis(50));
        }
        true
    }

    /// Takes a snapshot of a volume of no use, after which whatever is made is newer than what there is.
    pub fn advance(&self) -> Result {
        let volume = self.new_volume()?;
        // Nobody knows of it, so it is not active.
        let snapshot = self.new_id(|id| self.message(&create_snap(id, volume)))?;
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

    fn new_id(&self, create: impl Fn(u32) -> Result) -> Result<u32> {
        loop {
            let id = random_id()?;
            match self.journal.enter(Entry::Volume { id }, || create(id)) {
                Err(e) if e.errno() == Some(Errno::EXIST) => continue,
                result => return result.map(|()| id),
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

/// Gives an error if resuming a device would give it another table.
pub fn check_no_other_table(info: &Info) -> Result {
    let name = &info.name;
    match info.has_other_table {
        false => Ok(()),
        true => Err(Error::Refused(format!(
            "somebody has loaded another table for {name}: see \"dmsetup table --inactive {name}\"; \"dmsetup clear {name}\" \
             takes it away"
        ))),
    }
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
