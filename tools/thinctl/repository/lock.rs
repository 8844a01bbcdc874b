// SPDX-License-Identifier: GPL-2.0

//! The right to write into a repository.

use std::{
    fs::{
        File,
        OpenOptions, //
    },
    io::ErrorKind,
    ops::Deref,
    os::unix::fs::{
        FileExt,
        OpenOptionsExt, //
    },
    path::Path,
};

use rustix::{
    fs::{
        flock,
        FlockOperation, //
    },
    io::Errno,
};

use super::{
    name::{
        Name,
        Part, //
    },
    Repository,
    LOCK, //
};
use crate::{
    cut,
    error::{
        Error,
        Result, //
    },
    files::{
        names,
        open_regular,
        read_regular,
        remove,
        sync_folder,
        unfinished,
        NewFile, //
    },
    state, //
};

/// What the name of a file is made of that is there for a moment only.
const LISTING: &str = "000000";

/// How long what is written into it is, in bytes.
const TOKEN: u64 = 32;

/// The right to write into a repository, until it is dropped.
#[derive(Debug)]
pub struct Locked {
    pub(super) repository: Repository,
    /// It is unlocked when it is closed, by the kernel if by nobody else.
    _lock: File,
    /// What this process has written into it.
    token: Vec<u8>,
}

impl Deref for Locked {
    type Target = Repository;

    fn deref(&self) -> &Repository {
        &self.repository
    }
}

impl Locked {
    pub(super) fn new(repository: &Repository) -> Result<Self> {
        let path = repository.root.join(LOCK);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        cut::point();
        let lock = open_regular(&path, &mut options).map_err(Error::io(path.display()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
            Errno::WOULDBLOCK => taken(repository),
            e => Error::Io(path.display().to_string(), e.into()),
        })?;
        let locked = Self {
            repository: repository.clone(),
            token: sign(&lock, &path)?,
            _lock: lock,
        };
        for volume in locked.folders()? {
            locked.recover(&volume)?;
        }
        Ok(locked)
    }

    /// Gives an error if another process has taken the lock as well, as one of another host can if the file system knows
    /// locks of one host only. To be called right before what must not be done by two.
    pub(super) fn check(&self) -> Result {
        let path = self.root.join(LOCK);
        match read_regular(&path, TOKEN) {
            Ok(token) if token == self.token => Ok(()),
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(Error::Io(path.display().to_string(), e))
            }
            _ => Err(taken(self)),
        }
    }

    /// Finishes or undoes what was cut off.
    fn recover(&self, volume: &str) -> Result {
        match self.recover_all(volume) {
            // Verifying tells about it, and other volumes have nothing to do with it; but all have with the lock.
            Err(Error::Damaged(_) | Error::Io(..)) => self.check(),
            result => result,
        }
    }

    fn recover_all(&self, volume: &str) -> Result {
        let folder = self.folder(volume)?;
        if !self.without_stream(volume)?.is_empty() {
            // The folder may have been listed before whoever had the lock was done, and remembered, as NFS does until
            // something is changed from here.
            drop(NewFile::new(&folder, LISTING));
            for name in self.without_stream(volume)? {
                self.check()?;
                remove(&folder.join(name.manifest()))?;
            }
        }
        // They come last, when the manifest that they tell of, whose generation was cut off, is gone for good.
        let mut left = names(&folder)?;
        // Other programs may name files in the same way.
        left.retain(|name| unfinished(name).is_some_and(Name::begins));
        if !left.is_empty() {
            sync_folder(&folder)?;
        }
        for name in left {
            self.check()?;
            remove(&folder.join(name))?;
        }
        self.finish_prune(volume)
    }

    /// The generations that have a manifest only, as they were cut off.
    fn without_stream(&self, volume: &str) -> Result<Vec<Name>> {
        let (parts, lost) = (self.parts(volume)?, self.lost(volume)?);
        let names = parts.iter().filter(|(name, part)| {
            *part == Part::Manifest
                && !parts.contains(&(*name, Part::Stream))
                && !lost.contains(name)
        });
        Ok(names.map(|(name, _)| *name).collect())
    }
}

/// Writes into the lock file who has it; gives what is in there then.
fn sign(lock: &File, path: &Path) -> Result<Vec<u8>> {
    cut::point();
    match lock.write_all_at(state::random_hex(TOKEN as usize / 2)?.as_bytes(), 0) {
        // Pruning makes room, and must not need any.
        Err(e) if e.kind() == ErrorKind::StorageFull => {}
        written => written.map_err(Error::io(path.display()))?,
    }
    read_regular(path, TOKEN).map_err(Error::io(path.display()))
}

fn taken(repository: &Repository) -> Error {
    Error::Busy(format!(
        "{}: another process is writing into it",
        repository.root.display()
    ))
}
