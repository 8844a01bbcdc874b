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
        Read,
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

use rustix::{
    fs::{
        flock,
        FlockOperation,
        OFlags, //
    },
    io::Errno, //
};
use tempfile::{
    PathPersistError,
    TempPath, //
};

use crate::error::{
    Error,
    Result, //
};

#[cfg(test)]
pub(crate) mod steps;

/// What the names of files begin with that are not finished.
const TEMPORARY: &str = ".tmp-";

/// Of a file that is not finished, what its name is made of, and something more.
pub(crate) fn unfinished(name: &str) -> Option<&str> {
    name.strip_prefix(TEMPORARY)
}

/// What is done to the file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
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
use steps::step;

/// Each is a point at which the process can be killed for tests, too.
#[cfg(not(test))]
fn step(_: Step, _: &Path) -> io::Result<()> {
    crate::cut::point();
    Ok(())
}

/// A file under a temporary name, which goes away again unless it is put in place.
pub(crate) struct NewFile {
    output: BufWriter<Output>,
    folder: PathBuf,
    /// Its temporary name, until it is put in place.
    temporary: Option<TempPath>,
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
    pub(crate) fn new(folder: &Path, name: &str) -> Result<Self> {
        let create = || {
            step(Step::Create, folder)?;
            tempfile::Builder::new()
                .prefix(&format!("{TEMPORARY}{name}-"))
                .disable_cleanup(true)
                .tempfile_in(folder)
        };
        let (file, temporary) = create().map_err(Error::io(folder.display()))?.into_parts();
        let output = Output {
            file,
            path: temporary.to_path_buf(),
        };
        Ok(Self {
            output: BufWriter::with_capacity(1 << 18, output),
            folder: folder.to_owned(),
            temporary: Some(temporary),
        })
    }

    /// Shows that somebody is at work on it, where locks are known.
    pub(crate) fn hold(&mut self) {
        let _ = flock(
            &self.output.get_ref().file,
            FlockOperation::NonBlockingLockExclusive,
        );
    }

    /// It stays, unfinished.
    pub(crate) fn leave(&mut self) {
        self.temporary = None;
    }

    /// Makes sure that what was written stays.
    pub(crate) fn sync(&mut self) -> Result {
        let mut sync = || {
            self.output.flush()?;
            let output = self.output.get_ref();
            step(Step::Sync, &output.path)?;
            output.file.sync_all()
        };
        sync().map_err(Error::io(self.path().display()))
    }

    fn path(&self) -> &Path {
        &self.output.get_ref().path
    }

    /// How long it is.
    pub(crate) fn len(&self) -> Result<u64> {
        let metadata = self.output.get_ref().file.metadata();
        Ok(metadata.map_err(Error::io(self.path().display()))?.len())
    }

    /// Puts it in place, for good, unless there is something already.
    pub(crate) fn commit(&mut self, name: &str) -> Result {
        self.put_in_place(name, |temporary, path| {
            match temporary.persist_noclobber(path) {
                // What looks like a file system may know neither such renames nor links.
                Err(e) if has_no_links(&e.error) && !path.exists() => e.path.persist(path),
                result => result,
            }
        })
    }

    /// Puts it in place, for good, also of another one.
    pub(crate) fn replace(mut self, name: &str) -> Result {
        self.put_in_place(name, |temporary, path| temporary.persist(path))
    }

    fn put_in_place(
        &mut self,
        name: &str,
        put: impl FnOnce(TempPath, &Path) -> std::result::Result<(), PathPersistError>,
    ) -> Result {
        self.sync()?;
        let path = self.folder.join(name);
        step(Step::Rename, &path).map_err(Error::io(path.display()))?;
        let Some(temporary) = self.temporary.take() else {
            return Ok(());
        };
        if let Err(e) = put(temporary, &path) {
            self.temporary = Some(e.path);
            return Err(match e.error.kind() {
                ErrorKind::AlreadyExists => Error::Busy(format!(
                    "{}: another process has made it meanwhile",
                    path.display()
                )),
                _ => Error::Io(path.display().to_string(), e.error),
            });
        }
        sync_folder(&self.folder)
    }
}

fn has_no_links(e: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(e),
        Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)
    )
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
        if let Some(temporary) = &self.temporary {
            // What cannot be removed now is removed by the next one who takes the lock.
            let _ = remove(temporary);
        }
    }
}

/// Makes sure that names stay as they are.
pub(crate) fn sync_folder(folder: &Path) -> Result {
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
pub(crate) fn make_folder(folder: &Path) -> Result<bool> {
    let make = || {
        step(Step::MakeFolder, folder)?;
        DirBuilder::new().mode(0o700).create(folder)
    };
    match make() {
        Ok(()) => {}
        // Whoever has made it may have been killed before it was made for good.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            return sync_parent(folder).map(|()| false)
        }
        Err(e) => return Err(Error::Io(folder.display().to_string(), e)),
    }
    sync_parent(folder)?;
    Ok(true)
}

/// Makes a folder, for good, and those that it is in.
pub(crate) fn make_folders(folder: &Path) -> Result {
    if folder.is_dir() {
        return Ok(());
    }
    match folder.parent() {
        Some(parent) if parent != Path::new("") => make_folders(parent)?,
        _ => {}
    }
    let make = || {
        step(Step::MakeFolder, folder)?;
        fs::create_dir(folder)
    };
    match make() {
        Err(e) if e.kind() != ErrorKind::AlreadyExists || !folder.is_dir() => {
            Err(Error::Io(folder.display().to_string(), e))
        }
        _ => sync_parent(folder),
    }
}

fn sync_parent(folder: &Path) -> Result {
    sync_folder(match folder.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    })
}

/// Removes a file if it is there.
pub(crate) fn remove(path: &Path) -> Result {
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
pub(crate) fn remove_empty(folder: &Path) -> Result {
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

/// Opens a file whose place others may have chosen: nothing but a regular file, and none that a link leads to. That of a
/// device or a pipe may do anything, or wait for ever.
pub(crate) fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|e| match Errno::from_io_error(&e) {
            Some(Errno::LOOP) => not_regular(),
            // That of a pipe or a socket.
            Some(Errno::NXIO) => not_regular(),
            _ => e,
        })?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(not_regular()),
    }
}

fn not_regular() -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, "it is no regular file")
}

/// The content of a [regular](open_regular) file, of which no more than `most` bytes are of interest.
pub(crate) fn read_regular(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_regular(path, OpenOptions::new().read(true))?
        .take(most)
        .read_to_end(&mut content)?;
    Ok(content)
}

/// Whether something is a folder itself, and not a link to one.
pub(crate) fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// The names in a folder that are text; none if there is no folder.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
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
