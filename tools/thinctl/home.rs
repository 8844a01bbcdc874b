// SPDX-License-Identifier: GPL-2.0

//! What thinctl remembers of a pool, in a folder of files.
//!
//! | file | what |
//! | --- | --- |
//! | `pool.json` | a random name for the pool, and how far it was, see [`identity`](crate::identity) |
//! | `states.json` | the states of volumes that were received |
//! | `backup-*.json`, `replicate-*.json` | the snapshots that backups and replications go on from |
//! | `partial-*.json` | volumes that are being received |
//! | `migrate-*.json`, `merge-*.json` | migrations and merges that are not finished |
//! | `run-*.json` | what a process has to undo when it ends, see [`journal`](crate::journal) |
//! | the same with `.lock` | held by who works on that |
//! | `slot.lock` | held by who has the pool's metadata snapshot |
//! | `files.lock` | held while a file of several processes is changed |
//! | `.tmp-*` | what is being written, locked by who does; or was, until somebody was killed |
//!
//! A second folder, in `/run`, has what is of no use after the machine has stopped, and what is written while a volume is
//! suspended, which may be the one that the first folder lies on:
//!
//! | file | what |
//! | --- | --- |
//! | `run-*.json` and `run-*.lock` | devices that a process has to resume when it ends |
//! | `volume-*.lock` | held while a volume is suspended or replaced, see [`turn`](crate::turn) |
//!
//! Files are replaced whole, so that a crash leaves the old or the new one. Locks are `flock`s: they end with the
//! process that holds them.

use std::{
    fs::{
        self,
        File,
        OpenOptions, //
    },
    io::{
        ErrorKind,
        Write, //
    },
    path::{
        Path,
        PathBuf, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

use rustix::fs::{
    flock,
    FlockOperation, //
};
use serde::{
    de::DeserializeOwned,
    Serialize, //
};

use crate::{
    error::{
        Error,
        Result, //
    },
    files::{
        make_folders,
        names,
        open_regular,
        remove,
        sync_folder,
        unfinished,
        NewFile, //
    },
    pool::Pool,
    signals,
    tell::tell, //
};

/// The folder of one pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Home {
    folder: PathBuf,
}

/// How old a file is at least that is taken for one that is never finished.
const UNFINISHED: Duration = Duration::from_secs(3600);

/// A lock, until it is dropped.
pub struct Lock(#[expect(dead_code, reason = "closing it unlocks")] File);

/// A part of a file's name, for what names itself by any text.
pub fn key(text: &[u8]) -> String {
    let mut digits = blake3::hash(text).to_hex().to_string();
    digits.truncate(16);
    digits
}

/// The name of a folder for a pool of this name: no two have the same.
fn folder_name(pool: &str) -> String {
    let mut name: String = pool
        .chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => c,
            _ => '_',
        })
        .collect();
    if name != pool {
        name.push('-');
        name.push_str(&key(pool.as_bytes()));
    }
    name
}

impl Home {
    /// The folder of `pool` below `root`; it is made if need be.
    pub fn open(root: &Path, pool: &Pool) -> Result<Self> {
        let home = Self::at(&root.join(folder_name(pool.uuid.as_deref().unwrap_or(&pool.name))))?;
        home.remove_unfinished(UNFINISHED)?;
        Ok(home)
    }

    /// Removes what whoever was killed has not put in place, if it is older than that.
    fn remove_unfinished(&self, age: Duration) -> Result {
        for name in names(&self.folder)? {
            if unfinished(&name).is_none() {
                continue;
            }
            let path = self.path(&name);
            let mut options = OpenOptions::new();
            // Others may be quicker to remove it.
            let Ok(file) = open_regular(&path, options.read(true)) else {
                continue;
            };
            let is_old = file
                .metadata()
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|time| time.elapsed().is_ok_and(|elapsed| elapsed >= age));
            if is_old && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Any folder; it is made if need be.
    pub fn at(folder: &Path) -> Result<Self> {
        make_folders(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// The path of a file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The folders of all pools, also of those that are not active.
    pub fn all(&self) -> Result<Vec<Self>> {
        let Some(root) = self.folder.parent() else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for entry in fs::read_dir(root).map_err(Error::io(root.display()))? {
            let folder = entry.map_err(Error::io(root.display()))?.path();
            if folder.is_dir() {
                all.push(Self { folder });
            }
        }
        Ok(all)
    }

    /// The names of the files that begin with `prefix` and end with `suffix`, and what is between.
    pub fn list(&self, prefix: &str, suffix: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(Error::io(self.folder.display()))? {
            let entry = entry.map_err(Error::io(self.folder.display()))?;
            let name = entry.file_name();
            let middle = name
                .to_str()
                .and_then(|name| name.strip_prefix(prefix))
                .and_then(|name| name.strip_suffix(suffix));
            found.extend(middle.map(str::to_owned));
        }
        found.sort();
        Ok(found)
    }

    /// The content of a file; `None` if there is none.
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.path(name);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::Io(path.display().to_string(), e)),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| Error::Damaged(format!("{}: {e}", path.display())))
    }

    /// Puts `content` in the place of a file; it is stable afterwards.
    pub fn store<T: Serialize>(&self, name: &str, content: &T) -> Result {
        let path = self.path(name);
        let text = serde_json::to_vec_pretty(content)
            .map_err(|e| Error::Damaged(format!("{}: {e}", path.display())))?;
        let mut file = NewFile::new(&self.folder, name)?;
        file.hold();
        file.write_all(&text).map_err(Error::io(path.display()))?;
        file.replace(name)
    }

    /// Removes a file; that there is none is no error.
    pub fn remove(&self, name: &str) -> Result {
        remove(&self.path(name))?;
        sync_folder(&self.folder)
    }

    /// Changes a file that several processes share; a file that is not there is a default one.
    pub fn update<T, X>(&self, name: &str, change: impl FnOnce(&mut T) -> Result<X>) -> Result<X>
    where
        T: Default + Serialize + DeserializeOwned,
    {
        let _lock = self.lock("files.lock", Duration::from_secs(60))?;
        let mut content = self.load(name)?.unwrap_or_default();
        let result = change(&mut content)?;
        self.store(name, &content)?;
        Ok(result)
    }

    /// Takes a lock if nobody has it.
    pub fn try_lock(&self, name: &str) -> Result<Option<Lock>> {
        let path = self.path(name);
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(Error::io(path.display()))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(e) if e == rustix::io::Errno::WOULDBLOCK => return Ok(None),
                Err(e) => return Err(Error::Io(path.display().to_string(), e.into())),
            }
            // Who held it before may have removed the file, and somebody made a new one.
            if is_same_file(&file, &path) {
                return Ok(Some(Lock(file)));
            }
        }
    }

    /// Takes a lock, waits for it for up to `patience`.
    pub fn lock(&self, name: &str, patience: Duration) -> Result<Lock> {
        let begun = Instant::now();
        let mut told = false;
        loop {
            if let Some(lock) = self.try_lock(name)? {
                return Ok(lock);
            }
            if !told && begun.elapsed() >= Duration::from_secs(2) {
                tell("waiting for another thinctl");
                told = true;
            }
            if begun.elapsed() >= patience {
                return Err(Error::Busy(format!(
                    "another thinctl holds {}",
                    self.path(name).display()
                )));
            }
            signals::check()?;
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn is_same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_whole() -> Result {
        let folder = tempfile::tempdir().map_err(Error::io("folder"))?;
        let home = Home::at(folder.path())?;
        assert_eq!(home.load::<Vec<u32>>("list.json")?, None);
        home.store("list.json", &[1, 2])?;
        home.update("list.json", |list: &mut Vec<u32>| {
            list.push(3);
            Ok(())
        })?;
        assert_eq!(home.load("list.json")?, Some(vec![1, 2, 3]));
        // A change that fails leaves what was there.
        let failed = home.update("list.json", |list: &mut Vec<u32>| {
            list.clear();
            Err::<(), _>(Error::Refused("no".to_owned()))
        });
        assert!(failed.is_err());
        assert_eq!(home.load("list.json")?, Some(vec![1, 2, 3]));
        fs::write(home.path("list.json"), "[1, 2").map_err(Error::io("list.json"))?;
        assert!(matches!(
            home.load::<Vec<u32>>("list.json"),
            Err(Error::Damaged(_))
        ));
        assert_eq!(home.list("li", ".json")?, ["st"]);
        home.remove("list.json")?;
        home.remove("list.json")?;
        assert_eq!(home.list("", ".json")?, [""; 0]);
        Ok(())
    }

    #[test]
    fn what_is_not_finished_is_removed() -> Result {
        let folder = tempfile::tempdir().map_err(Error::io("folder"))?;
        let home = Home::at(folder.path())?;
        let left = home.path(".tmp-list.json-a");
        fs::write(&left, "[").map_err(Error::io("left"))?;
        let mut held = NewFile::new(folder.path(), "list.json")?;
        held.hold();
        home.remove_unfinished(UNFINISHED)?;
        assert!(left.exists());
        home.remove_unfinished(Duration::ZERO)?;
        assert!(!left.exists());
        held.replace("list.json")?;
        assert_eq!(home.list("", ".json")?, ["list"]);
        Ok(())
    }

    #[test]
    fn each_pool_has_a_folder() {
        let names = ["pool.1", "pool_1", "pool:1", "LVM-abc-tpool"].map(folder_name);
        assert_eq!(names[1], "pool_1");
        assert_eq!(names[3], "LVM-abc-tpool");
        assert!(names[0] != names[2] && names[0].starts_with("pool_1-"));
        assert!(names[2].starts_with("pool_1-"));
    }

    #[test]
    fn a_lock_is_for_one() -> Result {
        let folder = tempfile::tempdir().map_err(Error::io("folder"))?;
        let home = Home::at(folder.path())?;
        let lock = home.try_lock("a.lock")?;
        assert!(lock.is_some());
        assert!(home.try_lock("a.lock")?.is_none());
        assert!(home.try_lock("b.lock")?.is_some());
        let busy = home.lock("a.lock", Duration::from_millis(60));
        assert!(matches!(busy, Err(Error::Busy(_))));
        drop(lock);
        assert!(home.try_lock("a.lock")?.is_some());
        Ok(())
    }
}
