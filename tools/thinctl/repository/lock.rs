// SPDX-License-Identifier: GPL-2.0

//! The right to write into a repository.

use std::{
    fs::{
        File,
        OpenOptions, //
    },
    ops::Deref,
    os::unix::fs::OpenOptionsExt,
};

use rustix::{
    fs::{
        flock,
        FlockOperation, //
    },
    io::Errno,
};

use super::{
    files::{
        names,
        remove, //
    },
    name::{
        Part,
        TEMPORARY, //
    },
    Repository, LOCK,
};
use crate::error::{
    Error,
    Result, //
};

/// The right to write into a repository, until it is dropped.
#[derive(Debug)]
pub struct Locked {
    pub(super) repository: Repository,
    /// It is unlocked when it is closed, by the kernel if by nobody else.
    _lock: File,
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
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io(path.display()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
            Errno::WOULDBLOCK => Error::Busy(format!(
                "{}: another process is writing into it",
                repository.root.display()
            )),
            e => Error::Io(path.display().to_string(), e.into()),
        })?;
        let locked = Self {
            repository: repository.clone(),
            _lock: lock,
        };
        for volume in locked.folders()? {
            locked.recover(&volume)?;
        }
        Ok(locked)
    }

    /// Finishes or undoes what was cut off.
    fn recover(&self, volume: &str) -> Result {
        let folder = self.folder(volume)?;
        for name in names(&folder)? {
            if name.starts_with(TEMPORARY) {
                remove(&folder.join(name))?;
            }
        }
        let parts = self.parts(volume)?;
        for (name, part) in &parts {
            if *part == Part::Manifest && !parts.contains(&(*name, Part::Stream)) {
                remove(&folder.join(name.manifest()))?;
            }
        }
        match self.finish_prune(volume) {
            // Verifying tells about it, and other volumes have nothing to do with it.
            Err(Error::Damaged(_)) => Ok(()),
            result => result,
        }
    }
}
