// SPDX-License-Identifier: GPL-2.0

//! What a process has to undo when it ends.
//!
//! Whatever must not stay is noted in a file before it is done. When the process ends, also by an error or a signal, it
//! undoes what is noted. If it was killed, or the machine stopped, the next process that works with the pool does:
//! a process holds a lock as long as it lives, so that the file of one that is alive is left alone.
//!
//! A process has two of them, which have the same name. The one in `/run` has the devices that are suspended: while one
//! is, nothing else is written to, as it may be what the other folder lies on. The other one has all else, which does not
//! go when the machine stops.

use std::{
    path::Path,
    sync::{
        Arc,
        Mutex,
        MutexGuard,
        PoisonError, //
    },
    thread,
    time::Duration,
};

use devicemapper::Device;
use rustix::io::Errno;
use serde::{
    Deserialize,
    Serialize, //
};

use persistent_data::direct::DirectBm;
use thin_metadata::format::{
    Superblock,
    SUPERBLOCK_LOCATION, //
};

use crate::{
    dm::{
        Dm,
        Info, //
    },
    error::{
        Error,
        Result, //
    },
    home::{
        Home,
        Lock, //
    },
    pool::Pool,
    quiet::{
        self,
        Hush, //
    },
    state,
    tell::tell, //
};

/// How often a list is tried to be locked when the process must end, and how long to wait in between.
const TRIES_AT_EXIT: u32 = 40;
const PAUSE_AT_EXIT: Duration = Duration::from_millis(50);

/// Something that must not stay.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Entry {
    /// The pool's metadata snapshot.
    MetadataSnap {
        /// Where it is, once that is known.
        root: Option<u64>,
        /// The metadata's time when it was about to be taken.
        time: u32,
        /// The metadata's transaction id at that time.
        transaction: u64,
    },
    /// A device.
    Device {
        /// Its name.
        name: String,
    },
    /// A device that is suspended.
    Suspended {
        /// Its name, which others may change.
        name: String,
        /// Its number.
        #[serde(default)]
        device: String,
        /// Its UUID, if it has one: by the time it is resumed, the number may be another device's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uuid: Option<String>,
        /// Whether it may be another one after all that has this name, as it is suspended by the name.
        #[serde(default)]
        by_name: bool,
    },
    /// A thin volume.
    Volume {
        /// Its id.
        id: u32,
    },
}

impl Entry {
    /// For a device that is about to be suspended.
    fn suspended(info: &Info) -> Self {
        Self::Suspended {
            name: info.name.clone(),
            device: info.device.to_string(),
            uuid: info.uuid.clone(),
            by_name: info.uuid.is_none(),
        }
    }

    fn is_suspended(&self) -> bool {
        matches!(self, Self::Suspended { .. })
    }

    fn suspends(&self, info: &Info) -> bool {
        match self {
            Self::Suspended {
                name,
                device,
                by_name,
                ..
            } => {
                *device == info.device.to_string()
                    || (*name == info.name && (*by_name || device.is_empty()))
            }
            _ => false,
        }
    }
}

/// The notes of one process on one pool.
///
/// The list is locked while something that is noted is done or undone. What is done may lock the list of what is
/// suspended, and no other one.
pub struct Journal {
    dm: Arc<Dm>,
    pool: Pool,
    home: Home,
    name: String,
    entries: Mutex<Vec<Entry>>,
    /// Until it is left to others.
    lock: Mutex<Option<Lock>>,
}

impl Journal {
    /// Undoes what processes have left that do not live any more. What cannot be read keeps nobody from the rest; the first
    /// error is given.
    pub fn recover(dm: &Arc<Dm>, pool: &Pool, home: &Home) -> Result {
        let _hush = Hush::begin();
        let mut result = Ok(());
        for name in home.list("run-", ".lock")? {
            result = result.and(Self::recover_one(dm, pool, home, name));
        }
        result
    }

    /// Undoes what the journal of this name has, unless its process lives.
    pub fn recover_one(dm: &Arc<Dm>, pool: &Pool, home: &Home, name: String) -> Result {
        // Another process may be quicker.
        if let Some(lock) = home.try_lock(&lock_file(&name))? {
            let entries = home.load(&entries_file(&name))?.unwrap_or_default();
            let journal = Self {
                dm: dm.clone(),
                pool: pool.clone(),
                home: home.clone(),
                name,
                entries: Mutex::new(entries),
                lock: Mutex::new(Some(lock)),
            };
            journal.finish();
        }
        Ok(())
    }

    /// Whether there is a journal of this name.
    pub fn exists(home: &Home, name: &str) -> bool {
        home.path(&lock_file(name)).exists()
    }

    /// Whether the journal of this name has a suspended device, or will tell when it can be read. A damaged one never will.
    pub fn may_suspend(home: &Home, name: &str) -> bool {
        match home.load::<Vec<Entry>>(&entries_file(name)) {
            Ok(entries) => entries.iter().flatten().any(Entry::is_suspended),
            Err(e) => !matches!(e, Error::Damaged(_)),
        }
    }

    /// Whether any journal in this folder has one of these devices as suspended.
    pub fn any_suspends(home: &Home, devices: &[Info]) -> Result<bool> {
        for name in home.list("run-", ".json")? {
            let entries: Vec<Entry> = home.load(&entries_file(&name))?.unwrap_or_default();
            let suspends = |entry: &Entry| devices.iter().any(|info| entry.suspends(info));
            if entries.iter().any(suspends) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The volumes that any journal in this folder has.
    pub fn volumes(home: &Home) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for name in home.list("run-", ".json")? {
            let entries: Vec<Entry> = home.load(&entries_file(&name))?.unwrap_or_default();
            found.extend(entries.iter().filter_map(|entry| match entry {
                Entry::Volume { id } => Some(*id),
                _ => None,
            }));
        }
        Ok(found)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// An empty journal in each of two folders, of one name.
    pub fn begin(dm: &Arc<Dm>, pool: &Pool, homes: [&Home; 2]) -> Result<[Arc<Self>; 2]> {
        loop {
            let name = state::random_hex(8)?;
            let journal = |home: &Home| -> Result<Option<Arc<Self>>> {
                let lock = home.try_lock(&lock_file(&name))?;
                Ok(lock.map(|lock| {
                    Arc::new(Self {
                        dm: dm.clone(),
                        pool: pool.clone(),
                        home: home.clone(),
                        name: name.clone(),
                        entries: Mutex::new(Vec::new()),
                        lock: Mutex::new(Some(lock)),
                    })
                }))
            };
            let [one, other] = homes.map(journal);
            // Whoever undoes what is left may have found the file before it was locked, and takes it for an old one.
            if let (Some(one), Some(other)) = (one?, other?) {
                return Ok([one, other]);
            }
        }
    }

    /// Does something that must not stay, and notes it before. If it fails, it was not done, but a device may be left.
    ///
    /// While a device is suspended that could not be resumed, the file may be one on it, and is not written: nobody could end this
    /// process then, and its guard would wait for that. Whoever undoes the rest finds that it was not done; but what somebody
    /// else had before, as a volume of this id or the metadata snapshot, must not stay noted.
    pub fn enter<X>(&self, entry: Entry, action: impl FnOnce() -> Result<X>) -> Result<X> {
        let mut entries = self.entries();
        entries.push(entry);
        if let Err(e) = self.store(&entries) {
            entries.pop();
            return Err(e);
        }
        let result = action();
        if result.is_err() && !self.is_left(entries.last()) {
            entries.pop();
            let is_of_others = result
                .as_ref()
                .is_err_and(|e| matches!(e.errno(), Some(Errno::EXIST | Errno::BUSY)));
            if is_of_others || !quiet::any_suspended() {
                self.store(&entries)?;
            }
        }
        result
    }

    /// Suspends a device, and gives its entry, and the number of the one that was suspended. That is another one if this one
    /// has no UUID, and its name went to the other one after it was looked at. So until the answer is there, the entry stands
    /// for the device and for whoever has its name: if the process is killed before, both are resumed. From then on, it is
    /// that of the device which was suspended, which must be resumed as any other.
    pub fn suspend(&self, info: &Info) -> Result<(Entry, Device)> {
        let mut entries = self.entries();
        entries.push(Entry::suspended(info));
        if let Err(e) = self.store(&entries) {
            entries.pop();
            return Err(e);
        }
        let suspended = self.dm.suspend(info);
        entries.pop();
        let number = match suspended {
            Ok(number) => number,
            Err(e) => {
                self.store(&entries)?;
                return Err(e);
            }
        };
        let entry = Entry::Suspended {
            name: info.name.clone(),
            device: number.to_string(),
            uuid: info.uuid.clone(),
            by_name: false,
        };
        entries.push(entry.clone());
        if number != info.device {
            // What is in the file stands for it as well as long as nobody renames it.
            let _ = self.store(&entries);
        }
        Ok((entry, number))
    }

    /// Whether something is there although it could not be made whole.
    fn is_left(&self, entry: Option<&Entry>) -> bool {
        match entry {
            Some(Entry::Device { name }) => !matches!(self.dm.info(name), Ok(None)),
            _ => false,
        }
    }

    /// Whether the pool has its metadata snapshot at `root`.
    pub fn holds_metadata_snap(&self, root: u64) -> Result<bool> {
        Ok(self.pool.status(&self.dm)?.metadata_snap == Some(root))
    }

    /// Notes something in other words, which are in the file after the next change of it or [`save`](Self::save).
    pub fn amend(&self, old: &Entry, new: Entry) {
        let mut entries = self.entries();
        if let Some(entry) = entries.iter_mut().find(|entry| *entry == old) {
            *entry = new;
        }
    }

    /// Writes the file.
    pub fn save(&self) -> Result {
        self.store(&self.entries())
    }

    /// Undoes something now; does nothing if it is not noted any more.
    pub fn undo(&self, entry: &Entry) -> Result {
        let mut entries = self.entries();
        if !entries.contains(entry) {
            return Ok(());
        }
        self.undo_entry(entry, false)?;
        entries.retain(|e| e != entry);
        self.store(&entries)
    }

    /// Whether something is noted.
    pub fn has(&self, entry: &Entry) -> bool {
        self.entries().contains(entry)
    }

    /// All that is noted.
    pub fn all(&self) -> Vec<Entry> {
        self.entries().clone()
    }

    /// Notes something no more, after `action`.
    pub fn keep(&self, entry: &Entry, action: impl FnOnce() -> Result) -> Result {
        let mut entries = self.entries();
        action()?;
        entries.retain(|e| e != entry);
        self.store(&entries)
    }

    /// Does something in between which nothing is noted or undone, not even because this process ends.
    pub fn holding<X>(&self, action: impl FnOnce() -> Result<X>) -> Result<X> {
        let _entries = self.entries();
        action()
    }

    /// Undoes all that is left. What fails is told when all else was tried, and nobody waits for the list any more: telling
    /// may take long, or need a device that is still to be resumed.
    pub fn finish(&self) {
        let _hush = Hush::begin();
        self.undo_all(&mut self.entries(), false);
    }

    /// Undoes all that can be undone while the process still has devices open. The list stays locked, so that nothing
    /// else is done. Who has it may itself wait for another one that stays locked: then it is left to the next process.
    /// For whoever has a [`Hush`].
    /// Whether nothing is left.
    pub fn undo_at_exit(&self) -> bool {
        for _ in 0..TRIES_AT_EXIT {
            match self.entries.try_lock() {
                Ok(mut entries) => {
                    self.undo_all(&mut entries, true);
                    let is_done = entries.is_empty();
                    std::mem::forget(entries);
                    return is_done;
                }
                Err(_) => thread::sleep(PAUSE_AT_EXIT),
            }
        }
        false
    }

    /// Leaves the file to others, from now on: this process must change it no more. Gives the names and numbers of the devices
    /// that are left suspended.
    pub fn leave(&self) -> Vec<(String, Device)> {
        // Who undoes all at the exit has this one first, too.
        let mut entries = self.entries();
        self.lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let left = std::mem::take(&mut *entries);
        left.into_iter()
            .filter_map(|entry| match entry {
                Entry::Suspended { name, device, .. } => Some((name, device.parse().ok()?)),
                _ => None,
            })
            .collect()
    }

    fn is_left_to_others(&self) -> bool {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        lock.is_none()
    }

    fn undo_all(&self, entries: &mut Vec<Entry>, at_exit: bool) {
        if self.is_left_to_others() {
            return;
        }
        let mut left = Vec::new();
        while let Some(entry) = entries.pop() {
            if let Err(e) = self.undo_entry(&entry, at_exit) {
                tell(format_args!("{e}; the next run tries again"));
                left.insert(0, entry);
            }
        }
        let stored = if left.is_empty() {
            self.home
                .remove(&entries_file(&self.name))
                .and_then(|()| self.home.remove(&lock_file(&self.name)))
        } else {
            self.store(&left)
        };
        if let Err(e) = stored {
            tell(e);
        }
        // Whoever comes next tries again.
        *entries = left;
    }

    fn undo_entry(&self, entry: &Entry, at_exit: bool) -> Result {
        match entry {
            Entry::MetadataSnap {
                root,
                time,
                transaction,
            } => {
                let held = self.pool.status(&self.dm)?.metadata_snap;
                match (held, *root) {
                    (Some(held), Some(root)) if held == root => {}
                    (Some(held), None)
                        if (*time, *transaction) == stamp(&self.pool.metadata, held)? => {}
                    _ => return Ok(()),
                }
                self.dm.message(&self.pool.name, "release_metadata_snap")
            }
            Entry::Device { name } => match self.dm.info(name)? {
                Some(_) if at_exit => self.dm.remove_later(name),
                Some(_) => self.dm.remove(name),
                None => Ok(()),
            },
            Entry::Suspended {
                name,
                device,
                uuid,
                by_name,
            } => match device.parse() {
                // Should somebody else have suspended the one that has the name now, they find it resumed.
                Ok(number) if *by_name => self
                    .dm
                    .resume_number(number, None)
                    .and(self.resume_named(name)),
                Ok(number) => self.dm.resume_number(number, uuid.as_deref()),
                Err(_) => self.resume_named(name),
            },
            Entry::Volume { id } => self.pool.delete(&self.dm, *id),
        }
    }

    fn resume_named(&self, name: &str) -> Result {
        match self.dm.info(name)? {
            Some(info) if info.suspended => self.dm.resume_public(name).map(drop),
            _ => Ok(()),
        }
    }

    /// Writes the file; there is none if there is nothing in it, which also a full file system has room for.
    fn store(&self, entries: &Vec<Entry>) -> Result {
        let file = entries_file(&self.name);
        match entries.is_empty() {
            true => self.home.remove(&file),
            false => self.home.store(&file, entries),
        }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file with the entries of a journal.
fn entries_file(name: &str) -> String {
    format!("run-{name}.json")
}

/// The file that the process of a journal has locked; it goes with the journal.
fn lock_file(name: &str) -> String {
    format!("run-{name}.lock")
}

/// The time and the transaction id of the metadata whose superblock is at `root`.
fn stamp(metadata: &Path, root: u64) -> Result<(u32, u64)> {
    let bm = DirectBm::open(metadata)?;
    let superblock = Superblock::read(&bm, root)?;
    Ok((superblock.time.get(), superblock.trans_id.get()))
}

/// The entry for a metadata snapshot that is about to be taken.
pub fn metadata_snap_entry(metadata: &Path) -> Result<Entry> {
    let (time, transaction) = stamp(metadata, SUPERBLOCK_LOCATION)?;
    Ok(Entry::MetadataSnap {
        root: None,
        time,
        transaction,
    })
}
