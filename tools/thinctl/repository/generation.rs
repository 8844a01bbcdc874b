// SPDX-License-Identifier: GPL-2.0

//! One backup of a volume.

use std::{
    fmt,
    fs::OpenOptions,
    io::{
        ErrorKind,
        Write, //
    },
    path::Path,
};

use serde::{
    Deserialize,
    Serialize, //
};

use super::name::Name;
use crate::{
    error::{
        Error,
        Result, //
    },
    files::{
        open_regular,
        read_regular,
        NewFile, //
    },
    stream::{
        Header,
        Stored,
        Totals,
        MAX_HEADER, //
    },
};

/// Whether a backup needs another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It has all that was mapped.
    Full,
    /// It has what has changed since the one before.
    Incremental,
}

impl Kind {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Incremental => "incremental",
        }
    }
}

/// The volume that a backup was made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Source {
    /// The name of its pool, for people.
    pub pool: String,
    /// The random name of its pool.
    pub identity: String,
    /// The UUID of the pool's device, if it has one.
    pub pool_uuid: Option<String>,
    /// Its id in the pool.
    pub volume: u32,
    /// When it was made, in snapshots of its pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<u32>,
    /// The UUID that lvm2 has given to it, if it was active.
    pub uuid: Option<String>,
}

impl Source {
    /// Whether both are volumes of one name: lvm2's volumes keep their UUIDs, and others their ids.
    pub fn is(&self, other: &Self) -> bool {
        match (&self.uuid, &other.uuid) {
            (Some(one), Some(other)) => one == other,
            _ => {
                let is_pool = self.identity == other.identity
                    || (self.pool_uuid.is_some() && self.pool_uuid == other.pool_uuid);
                is_pool && self.volume == other.volume
            }
        }
    }

    /// Whether one of the two was made anew since: the id had been given up. lvm2 gives its volumes other ids, but no other
    /// UUIDs.
    pub fn is_made_anew(&self, other: &Self) -> bool {
        let has_same_uuid = self.uuid.is_some() && self.uuid == other.uuid;
        let created = self.created.zip(other.created);
        !has_same_uuid && created.is_some_and(|(one, other)| one != other)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "volume {} of pool {}", self.volume, self.pool)
    }
}

/// One backup of a volume, as its manifest tells.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Generation {
    /// Its number, one more than that of the one before.
    pub number: u64,
    /// Whether it needs the one before.
    pub kind: Kind,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// What it was made of; older ones do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// What its stream begins with.
    pub header: Header,
    /// What its stream has.
    pub totals: Totals,
}

const VERSION: u32 = 1;

/// How long a manifest is at most, in bytes: a header takes most of it, perhaps with other spaces.
const MAX_MANIFEST: u64 = 4 * MAX_HEADER as u64;

/// What is in the file.
#[derive(Serialize, Deserialize)]
struct Manifest<T> {
    version: u32,
    generation: T,
}

impl Generation {
    pub(super) fn name(&self) -> Name {
        Name {
            number: self.number,
            kind: self.kind,
        }
    }

    /// Reads its manifest.
    pub(super) fn load(folder: &Path, name: Name) -> Result<Self> {
        let path = folder.join(name.manifest());
        let damaged = |what: String| Error::Damaged(format!("{}: {what}", path.display()));
        let json = read_regular(&path, MAX_MANIFEST).map_err(|e| {
            if e.kind() == ErrorKind::NotFound {
                damaged("the manifest is missing".into())
            } else {
                Error::Io(path.display().to_string(), e)
            }
        })?;
        let manifest: Manifest<serde_json::Value> =
            serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))?;
        if manifest.version != VERSION {
            return Err(damaged(format!(
                "version {} is not known",
                manifest.version
            )));
        }
        let generation: Self =
            serde_json::from_value(manifest.generation).map_err(|e| damaged(e.to_string()))?;
        if generation.name() != name
            || (name.kind == Kind::Full) != generation.header.from.is_none()
        {
            return Err(damaged("it is of another generation".into()));
        }
        Ok(generation)
    }

    /// Gives an error unless its stream is as long as it was, and begins as it did.
    pub(super) fn check_stream(&self, folder: &Path) -> Result {
        let path = folder.join(self.name().stream());
        let damaged = |what: &str| Error::Damaged(format!("{}: {what}", path.display()));
        let file = open_regular(&path, OpenOptions::new().read(true))
            .map_err(Error::io(path.display()))?;
        let len = file.metadata().map_err(Error::io(path.display()))?.len();
        if len != self.totals.stored {
            let there = self.totals.stored;
            return Err(damaged(&format!(
                "it has {len} bytes, and was made with {there}"
            )));
        }
        match Stored::new(file) {
            Ok(stored) if *stored.header() == self.header => Ok(()),
            Ok(_) => Err(damaged("the stream is not that of the manifest")),
            Err(Error::Damaged(what)) => Err(damaged(&what)),
            Err(e) => Err(e),
        }
    }

    /// Reads the manifest of a generation whose data are there, too.
    pub(super) fn load_whole(folder: &Path, name: Name) -> Result<Self> {
        let generation = Self::load(folder, name)?;
        let data = folder.join(name.stream());
        match data.try_exists() {
            Ok(false) => Err(Error::Damaged(format!("{}: it is missing", data.display()))),
            _ => Ok(generation),
        }
    }

    /// Writes its manifest.
    pub(super) fn store(&self, folder: &Path) -> Result {
        let name = self.name().manifest();
        let manifest = Manifest {
            version: VERSION,
            generation: self,
        };
        let mut json = serde_json::to_vec_pretty(&manifest)
            .map_err(|e| Error::Refused(format!("{name}: {e}")))?;
        json.push(b'\n');
        let mut file = NewFile::new(folder, &name)?;
        file.write_all(&json).map_err(Error::io(&name))?;
        file.commit(&name)
    }
}

/// What is wrong with a chain of which the first is full and each leads to the next.
pub(super) fn check_chain(chain: &[Generation]) -> Result {
    if chain.first().is_none_or(|first| first.kind != Kind::Full) {
        return Err(Error::Damaged(
            "the full backup that it is based on is missing".into(),
        ));
    }
    for pair in chain.windows(2) {
        let [one, next] = pair else { continue };
        check_link(one, next)?;
    }
    Ok(())
}

/// What is wrong with one after the other.
pub(super) fn check_link(one: &Generation, next: &Generation) -> Result {
    let (from, to) = (one.number, next.number);
    let problem = if from.checked_add(1) != Some(to) {
        format!("what is between generations {from} and {to} is missing")
    } else if next.header.from != Some(one.header.to) {
        format!("generation {to} does not start from what {from} leads to")
    } else if next.header.size < one.header.size {
        format!("the volume shrinks in generation {to}")
    } else {
        return Ok(());
    };
    Err(Error::Damaged(problem))
}
