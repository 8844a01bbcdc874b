// SPDX-License-Identifier: GPL-2.0

//! Files that are there as a whole or not at all, whatever happens.

use std::{
    fs::{
        self,
        DirBuilder,
        File,
        OpenOptions, //
    },
    io::{
        self,
        BufWriter,
        ErrorKind,
        Write, //
    },
    os::unix::fs::{
        DirBuilderExt,
        OpenOptionsExt, //
    },
    path::{
        Path,
        PathBuf, //
    },
};

use rustix::io::Errno;

use super::name::TEMPORARY;
use crate::error::{
    Error,
    Result, //
};

/// What is done to the file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    MakeFolder,
    Create,
    Write,
    Sync,
    Rename,
    SyncFolder,
    Remove,
    RemoveFolder,
}

/// Tests look at each step here, and let it fail.
#[cfg(test)]
use super::tests::steps::step;

#[cfg(not(test))]
fn step(_: Step, _: &Path) -> io::Result<()> {
    Ok(())
}

/// A file under a temporary name, which goes away again unless it is put in place.
pub(super) struct NewFile {
    output: BufWriter<Output>,
    folder: PathBuf,
    temporary: PathBuf,
    /// Whether the temporary name is in use.
    pending: bool,
}

struct Output {
    file: File,
    path: PathBuf,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        step(Step::Write, &self.path)?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl NewFile {
    /// A file with a temporary name that is made of this one.
    pub(super) fn new(folder: &Path, name: &str) -> Result<Self> {
        let temporary = folder.join(format!("{TEMPORARY}{name}"));
        let create = || {
            step(Step::Create, &temporary)?;
            OpenOptions::new()
                .write(true)
                // Nobody else is writing: it is a left-over if it is there.
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)
        };
        let file = create().map_err(Error::io(temporary.display()))?;
        let output = Output {
            file,
            path: temporary.clone(),
        };
        Ok(Self {
            output: BufWriter::with_capacity(1 << 18, output),
            folder: folder.to_owned(),
            temporary,
            pending: true,
        })
    }

    /// Makes sure that what was written stays.
    pub(super) fn sync(&mut self) -> Result {
        let mut sync = || {
            self.output.flush()?;
            step(Step::Sync, &self.temporary)?;
            self.output.get_ref().file.sync_all()
        };
        sync().map_err(Error::io(self.temporary.display()))
    }

    /// How long it is.
    pub(super) fn len(&self) -> Result<u64> {
        let metadata = self.output.get_ref().file.metadata();
        Ok(metadata.map_err(Error::io(self.temporary.display()))?.len())
    }

    /// Puts it in place, for good.
    pub(super) fn commit(mut self, name: &str) -> Result {
        self.sync()?;
        let path = self.folder.join(name);
        let rename = || {
            step(Step::Rename, &path)?;
            fs::rename(&self.temporary, &path)
        };
        rename().map_err(Error::io(path.display()))?;
        self.pending = false;
        sync_folder(&self.folder)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.pending {
            // What cannot be removed now is removed by the next one who takes the lock.
            let _ = remove(&self.temporary);
        }
    }
}

/// Makes sure that names stay as they are.
pub(super) fn sync_folder(folder: &Path) -> Result {
    let sync = || {
        step(Step::SyncFolder, folder)?;
        match File::open(folder)?.sync_all() {
            // Not all file systems have something to do here.
            Err(e)
                if [Some(Errno::INVAL), Some(Errno::OPNOTSUPP)]
                    .contains(&Errno::from_io_error(&e)) =>
            {
                Ok(())
            }
            result => result,
        }
    };
    sync().map_err(Error::io(folder.display()))
}

/// Makes a folder, for good; whether it was not there.
pub(super) fn make_folder(folder: &Path) -> Result<bool> {
    let make = || {
        step(Step::MakeFolder, folder)?;
        DirBuilder::new().mode(0o700).create(folder)
    };
    match make() {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(false),
        Err(e) => return Err(Error::Io(folder.display().to_string(), e)),
    }
    let parent = match folder.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    sync_folder(parent)?;
    Ok(true)
}

/// Removes a file if it is there.
pub(super) fn remove(path: &Path) -> Result {
    let remove = || {
        step(Step::Remove, path)?;
        fs::remove_file(path)
    };
    match remove() {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::Io(path.display().to_string(), e)),
        _ => Ok(()),
    }
}

/// Removes a folder if nothing is in it.
pub(super) fn remove_empty(folder: &Path) -> Result {
    let remove = || {
        step(Step::RemoveFolder, folder)?;
        fs::remove_dir(folder)
    };
    match remove() {
        Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
            Err(Error::Io(folder.display().to_string(), e))
        }
        _ => Ok(()),
    }
}

/// The names in a folder that are text; none if there is no folder.
pub(super) fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io(folder.display()))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io(folder.display()))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}
