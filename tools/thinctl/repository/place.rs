// SPDX-License-Identifier: GPL-2.0

//! What there is where a repository should be.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::FileTypeExt,
    path::{
        Path,
        PathBuf, //
    },
};

use super::{
    name::{
        folder,
        Name, //
    },
    Marker, LOCK, MARKER,
};
use crate::{
    error::{
        Error,
        Result, //
    },
    files::{
        names,
        unfinished, //
    },
    number::count,
};

/// How many things are named of those in a folder.
const NAMED: usize = 3;

/// What fsck makes in the topmost folder of a file system, for files without a name.
const LOST_AND_FOUND: &str = "lost+found";

/// What is in the folder, but for what a repository that was not finished leaves there, and for fsck's; `None` if nothing is
/// at this path, and a folder can be made. An error if it cannot, or if something else is there.
pub(super) fn content(root: &Path) -> Result<Option<Vec<String>>> {
    // Without a slash at the end, which would make a file one that is not there.
    let path: PathBuf = root.components().collect();
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => {
            let mut names = names(&path)?;
            names.retain(|name| {
                !is_unfinished_marker(name) && name != LOCK && !is_of_fsck(&path, name)
            });
            Ok(Some(names))
        }
        Ok(metadata) => Err(no_folder(&path, &metadata)),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if fs::symlink_metadata(&path).is_ok() {
                return Err(Error::Refused(format!(
                    "{} is a link to something that is not there",
                    path.display()
                )));
            }
            match above(&path).take_while(|above| !above.exists()).last() {
                None => Ok(None),
                Some(missing) => Err(Error::NotFound(format!(
                    "there is no folder {}, which {} would be in",
                    missing.display(),
                    path.display()
                ))),
            }
        }
        Err(e) => {
            for above in above(&path) {
                match fs::metadata(above) {
                    Ok(metadata) if !metadata.is_dir() => return Err(no_folder(above, &metadata)),
                    _ => {}
                }
            }
            Err(Error::Io(path.display().to_string(), e))
        }
    }
}

/// The folders that a path leads through, the nearest one first; the current one has no name.
fn above(path: &Path) -> impl Iterator<Item = &Path> {
    path.ancestors()
        .skip(1)
        .filter(|above| *above != Path::new(""))
}

fn no_folder(path: &Path, metadata: &fs::Metadata) -> Error {
    let kind = metadata.file_type();
    let what = match kind.is_file() {
        true => "a file",
        false if kind.is_block_device() || kind.is_char_device() => "a device",
        false => "something else",
    };
    Error::Refused(format!("{} is {what}, and no folder", path.display()))
}

/// The error of a path that should be a repository, and has no marker.
pub(super) fn no_repository(root: &Path) -> Error {
    let path = root.display();
    let names = match content(root) {
        Ok(Some(names)) => names,
        Ok(None) => {
            return Error::NotFound(format!(
                "there is no folder {path}; if it is on a file system that is not mounted, mount that; `thinctl init {path}` \
                 makes a new one for backups"
            ))
        }
        Err(e) => return e,
    };
    if names.is_empty() {
        return Error::NotFound(format!(
            "{path} is an empty folder, and no repository: either a file system is not mounted there, or `thinctl init {path}` \
             is to make one of it"
        ));
    }
    if names.iter().any(|name| has_backups(root, name)) {
        return match remedy() {
            Ok(remedy) => Error::Damaged(format!("{path} has backups, but no {MARKER}: {remedy}")),
            Err(e) => e,
        };
    }
    Error::Refused(format!(
        "{path} is no repository, but has {}",
        listed(&names)
    ))
}

/// Whether it is what fsck makes, and no volume is called so. Others than root cannot look into it.
pub(super) fn is_of_fsck(root: &Path, name: &str) -> bool {
    name == LOST_AND_FOUND && !has_backups(root, name)
}

/// Whether it is a marker that was not put in place.
pub(super) fn is_unfinished_marker(name: &str) -> bool {
    unfinished(name).is_some_and(|of| of.starts_with(MARKER))
}

/// Whether it is the folder of a volume.
fn has_backups(root: &Path, name: &str) -> bool {
    folder(root, name)
        .and_then(|folder| names(&folder))
        .is_ok_and(|files| files.iter().any(|file| Name::parse(file).is_some()))
}

/// The error of a folder that is to be made a repository, and has something in it.
pub(super) fn not_empty(root: &Path, names: &[String]) -> Error {
    Error::Refused(format!(
        "{} is not empty: it has {}",
        root.display(),
        listed(names)
    ))
}

fn listed(names: &[String]) -> String {
    let (first, rest) = names.split_at(names.len().min(NAMED));
    let first = first.join(", ");
    match rest.len() {
        0 => first,
        more => format!("{first} and {}", count(more, "other thing")),
    }
}

/// What to do where a marker is lost.
pub(super) fn remedy() -> Result<String> {
    let marker = String::from_utf8_lossy(&Marker::new()?.json()?).into_owned();
    Ok(format!(
        "write {marker} into {MARKER}; all backups are there again, and the next one of each volume is a full one"
    ))
}
