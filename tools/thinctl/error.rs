// SPDX-License-Identifier: GPL-2.0

//! What can go wrong.

use std::{
    fmt,
    io::{
        self,
        ErrorKind, //
    },
};

use rustix::io::Errno;

/// The number of the signal that ends who writes into such a pipe.
const SIGPIPE: u8 = 13;

/// What a command gives up with.
///
/// Each kind has an exit code of its own; clap ends as [`Error::Usage`] does.
#[derive(Debug)]
pub enum Error {
    /// A system call or a request to device-mapper failed: what was done, and its error.
    Io(String, io::Error),
    /// The metadata could not be read.
    Metadata(thin_metadata::Error),
    /// There is no pool, volume, generation or file of this name.
    NotFound(String),
    /// Something is in the way that may go away: a lock, a metadata snapshot of somebody else, an open volume.
    Busy(String),
    /// A volume is not in the state that is needed, or something exists already.
    Refused(String),
    /// A stream, a backup or a file of thinctl's own is cut off, damaged or of another version.
    Damaged(String),
    /// A command that was called failed.
    Command(String),
    /// A pool has no room for what is to be written.
    NoRoom(String),
    /// The command line is wrong.
    Usage(String),
    /// A signal asked to stop.
    Interrupted(i32),
}

/// What functions of this crate give.
pub type Result<T = ()> = std::result::Result<T, Error>;

impl Error {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io(..) if self.is_unread() => 128 + SIGPIPE,
            Self::Io(..) => 1,
            // As clap ends.
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Busy(_) => 4,
            Self::Refused(_) => 5,
            Self::Damaged(_) => 6,
            Self::Metadata(_) => 7,
            Self::Command(_) => 8,
            Self::NoRoom(_) => 9,
            Self::Interrupted(signal) => {
                u8::try_from(*signal).map_or(255, |n| n.saturating_add(128))
            }
        }
    }

    /// Whether nobody reads the output any more: whoever has read enough of it need not be told. Other pipes than the standard
    /// output have errors of their own.
    pub fn is_unread(&self) -> bool {
        matches!(self, Self::Io(_, e) if e.kind() == ErrorKind::BrokenPipe)
    }

    /// The errno of a failed system call.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io(_, e) => Errno::from_io_error(e),
            _ => None,
        }
    }

    /// For `map_err`: names what a failed system call was for.
    pub fn io(what: impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |e| Self::Io(what.to_string(), e)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(what, e) => write!(f, "{what}: {e}"),
            Self::Metadata(e) => write!(f, "metadata: {e}"),
            Self::NotFound(what)
            | Self::Busy(what)
            | Self::Refused(what)
            | Self::Damaged(what)
            | Self::Command(what)
            | Self::NoRoom(what)
            | Self::Usage(what) => f.write_str(what),
            Self::Interrupted(signal) => write!(f, "stopped by signal {signal}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<thin_metadata::Error> for Error {
    fn from(e: thin_metadata::Error) -> Self {
        match e {
            thin_metadata::Error::NoDevice(id) => Self::NotFound(format!(
                "there is no volume {} in the pool; `thinctl ls` lists those that there are",
                id.key()
            )),
            e => Self::Metadata(e),
        }
    }
}

impl From<persistent_data::Error> for Error {
    fn from(e: persistent_data::Error) -> Self {
        thin_metadata::Error::from(e).into()
    }
}
