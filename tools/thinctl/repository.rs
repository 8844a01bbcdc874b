// SPDX-License-Identifier: GPL-2.0

//! Backups in a folder.
//!
//! A repository is a folder that can also be a mounted bucket: its files are written once, under a temporary name, and
//! put in place when they are on disk. None is changed afterwards. Inside of it there are
//!
//! | name | what it is |
//! | --- | --- |
//! | `.repository.json` | says that this is a repository, of which version, and has a random name for it |
//! | `.lock` | whoever writes has it locked, with flock, and has written into it who that is |
//! | `VOLUME/` | the backups of one volume |
//! | `VOLUME/000001.full.thin` | generation 1: a [stream](crate::stream) that starts from nothing |
//! | `VOLUME/000001.full.json` | its manifest: [`Generation`] |
//! | `VOLUME/000002.incremental.thin` | generation 2: a stream that starts from what generation 1 leads to |
//! | `VOLUME/000002.incremental.json` | its manifest |
//! | `VOLUME/.tmp-*` | what is not finished, or never was |
//!
//! A generation is there if its stream is there. So the manifest is put in place before the stream, and taken away after
//! it. A manifest without a stream is nothing; the next one who [locks](Repository::lock) the repository removes it. A
//! stream without a manifest is never removed by itself, as nothing leaves one behind.
//!
//! One process writes at a time. flock sees to that, also between hosts, on NFS for instance. Where it reaches but one
//! host, the second process takes the lock from the first by writing into it, and the first one fails before it puts
//! the next file in place or removes one. In no case does a file take the place of another one.
//!
//! If a number is there as full and as incremental, both lead to the same: [pruning](Locked::prune) was cut off after it
//! had made the full one, and goes on when the repository is locked. Until then the full one counts.

mod add;
mod fold;
mod generation;
mod layout;
mod lock;
mod name;
mod place;
mod prune;
mod verify;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs,
    io::{
        ErrorKind,
        Write, //
    },
    path::{
        Path,
        PathBuf, //
    },
};

use serde::{
    Deserialize,
    Serialize, //
};

pub use self::{
    fold::Fold,
    generation::{
        Generation,
        Kind,
        Source, //
    },
    lock::Locked,
    name::parse_name,
    prune::Pruned,
    verify::{
        Problem,
        Verification, //
    },
};
use self::{
    generation::check_chain,
    name::{
        folder,
        Name,
        Part, //
    },
};
use crate::{
    error::{
        Error,
        Result, //
    },
    files::{
        self,
        is_folder,
        make_folder,
        names,
        read_regular,
        NewFile, //
    },
    state, //
};

/// Backups in a folder.
#[derive(Clone, Debug)]
pub struct Repository {
    root: PathBuf,
    id: String,
}

const MARKER: &str = ".repository.json";
const LOCK: &str = ".lock";
const VERSION: u32 = 2;

/// How long a marker is at most, in bytes.
const MAX_MARKER: u64 = 4096;

/// A backup of a volume, as far as it can be read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum Listed {
    /// What its manifest tells.
    Generation(Box<Generation>),
    /// The manifest cannot be read.
    Unreadable {
        /// Its number.
        number: u64,
        /// Whether it needs the one before.
        kind: Kind,
        /// Why it cannot.
        problem: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Marker {
    version: u32,
    /// A random name, by which it is known wherever it is.
    id: String,
}

impl Marker {
    fn new() -> Result<Self> {
        Ok(Self {
            version: VERSION,
            id: state::random_hex(16)?,
        })
    }

    fn json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::Refused(format!("{MARKER}: {e}")))
    }
}

/// What all versions have in their markers.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Repository {
    /// Makes a repository of a folder that is empty or not there.
    pub fn create(root: &Path) -> Result<Self> {
        place::content(root)?;
        make_folder(root)?;
        // Somebody else may have been quicker.
        let content = place::content(root)?.unwrap_or_default();
        let old = names(root)?;
        if old.iter().any(|name| name == MARKER) {
            return Err(Error::Refused(format!(
                "{} is a repository already",
                root.display()
            )));
        }
        if !content.is_empty() {
            return Err(place::not_empty(root, &content));
        }
        for name in old.iter().filter(|name| place::is_unfinished_marker(name)) {
            files::remove(&root.join(name))?;
        }
        let json = Marker::new()?.json()?;
        let mut file = NewFile::new(root, MARKER)?;
        file.write_all(&json).map_err(Error::io(MARKER))?;
        file.commit(MARKER)?;
        Self::open(root)
    }

    /// Opens one, to read.
    pub fn open(root: &Path) -> Result<Self> {
        let marker = root.join(MARKER);
        let json = match read_regular(&marker, MAX_MARKER) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(place::no_repository(root));
            }
            json => json.map_err(Error::io(marker.display()))?,
        };
        let damaged = |e: serde_json::Error| match place::remedy() {
            Ok(remedy) => {
                Error::Damaged(format!("{} is damaged ({e}): {remedy}", marker.display()))
            }
            Err(e) => e,
        };
        let Version { version } = serde_json::from_slice(&json).map_err(damaged)?;
        if version != VERSION {
            let age = if version > VERSION {
                "a newer"
            } else {
                "an older"
            };
            return Err(Error::Damaged(format!(
                "{} is a repository of version {version}, which {age} thinctl has made: use that one; this one reads version \
                 {VERSION}",
                root.display()
            )));
        }
        let Marker { id, .. } = serde_json::from_slice(&json).map_err(damaged)?;
        Ok(Self {
            root: root.to_owned(),
            id,
        })
    }

    /// Its name, which it keeps if the folder is moved.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Takes the lock that lets one write, and finishes or undoes what was cut off.
    pub fn lock(&self) -> Result<Locked> {
        Locked::new(self)
    }

    /// The names of the volumes that have backups, sorted.
    pub fn volumes(&self) -> Result<Vec<String>> {
        let mut volumes = Vec::new();
        for name in self.folders()? {
            if !self.numbers(&name)?.is_empty() {
                volumes.push(name);
            }
        }
        Ok(volumes)
    }

    /// The backups of a volume, oldest first.
    pub fn generations(&self, volume: &str) -> Result<Vec<Generation>> {
        self.steady(volume, || self.load_all(volume))
    }

    fn load_all(&self, volume: &str) -> Result<Vec<Generation>> {
        let folder = self.folder(volume)?;
        let names = self.numbers(volume)?;
        if names.is_empty() {
            return Err(self.no_volume(volume));
        }
        names
            .into_iter()
            .map(|(number, kind)| Generation::load(&folder, Name { number, kind }))
            .collect()
    }

    /// The backups of a volume, oldest first, and of those whose manifests cannot be read, why.
    pub fn list(&self, volume: &str) -> Result<Vec<Listed>> {
        let folder = self.folder(volume)?;
        loop {
            let before = self.parts(volume)?;
            let names = self.numbers(volume)?;
            if names.is_empty() {
                return Err(self.no_volume(volume));
            }
            let mut all_read = true;
            let mut listed = Vec::new();
            for (number, kind) in names {
                let name = Name { number, kind };
                listed.push(match Generation::load_whole(&folder, name) {
                    Ok(generation) => Listed::Generation(Box::new(generation)),
                    Err(e) => {
                        all_read = false;
                        Listed::Unreadable {
                            number,
                            kind,
                            problem: e.to_string(),
                        }
                    }
                });
            }
            if all_read || self.parts(volume)? == before {
                return Ok(listed);
            }
        }
    }

    /// The last backup of a volume, as far as its manifest can be read.
    pub fn last_readable(&self, volume: &str) -> Result<Option<Generation>> {
        match self.list(volume) {
            Ok(mut listed) => Ok(match listed.pop() {
                Some(Listed::Generation(last)) => Some(*last),
                _ => None,
            }),
            Err(Error::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The last backup of a volume; none if there is no backup. An error unless it can be restored, as far as can be told
    /// without reading all data: each generation that it needs is there, is of the length that it had, and begins as it did.
    pub fn last_of_chain(&self, volume: &str) -> Result<Option<Generation>> {
        self.steady(volume, || {
            if self.numbers(volume)?.is_empty() {
                return Ok(None);
            }
            let folder = self.folder(volume)?;
            let mut chain = self.chain(volume, None)?;
            for generation in &chain {
                generation.check_stream(&folder)?;
            }
            Ok(chain.pop())
        })
    }

    /// What the backups of a volume were made of, as the last one says that does.
    pub fn source(&self, volume: &str) -> Result<Option<Source>> {
        match self.list(volume) {
            Ok(listed) => Ok(listed.into_iter().rev().find_map(|one| match one {
                Listed::Generation(generation) => generation.source,
                Listed::Unreadable { .. } => None,
            })),
            Err(Error::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What the volume contained in this generation, by default the last, as one stream that starts from nothing.
    pub fn restore(&self, volume: &str, generation: Option<u64>) -> Result<Fold> {
        self.steady(volume, || {
            Fold::new(&self.folder(volume)?, &self.chain(volume, generation)?)
        })
    }

    /// What `read` gives, done again if it fails while another process adds or removes backups of the volume.
    fn steady<T>(&self, volume: &str, mut read: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            let before = self.parts(volume)?;
            match read() {
                Err(_) if self.parts(volume)? != before => {}
                result => return result,
            }
        }
    }

    /// The generations that this one needs, and itself at the end.
    fn chain(&self, volume: &str, number: Option<u64>) -> Result<Vec<Generation>> {
        let names = self.numbers(volume)?;
        self.chain_of(volume, names, number)
    }

    /// What a volume contained in a generation that is there twice, of the other one of the two.
    fn restore_without(&self, volume: &str, twice: Name) -> Result<Fold> {
        let mut names = self.numbers(volume)?;
        let kind = match twice.kind {
            Kind::Full => Kind::Incremental,
            Kind::Incremental => Kind::Full,
        };
        names.insert(twice.number, kind);
        let chain = self.chain_of(volume, names, Some(twice.number))?;
        Fold::new(&self.folder(volume)?, &chain)
    }

    fn chain_of(
        &self,
        volume: &str,
        mut names: BTreeMap<u64, Kind>,
        number: Option<u64>,
    ) -> Result<Vec<Generation>> {
        let folder = self.folder(volume)?;
        if names.is_empty() {
            return Err(self.no_volume(volume));
        }
        if let Some(number) = number {
            if !names.contains_key(&number) {
                return Err(Error::NotFound(format!(
                    "{volume} has no generation {number}; `thinctl backups {}` lists those that it has",
                    self.root.display()
                )));
            }
            names.retain(|other, _| *other <= number);
        }
        let mut chain = Vec::new();
        for (number, kind) in names.into_iter().rev() {
            chain.push(Generation::load_whole(&folder, Name { number, kind })?);
            if kind == Kind::Full {
                break;
            }
        }
        chain.reverse();
        check_chain(&chain)?;
        Ok(chain)
    }

    /// The generations that are there, each as what counts, and those whose data are [lost](Self::lost).
    fn numbers(&self, volume: &str) -> Result<BTreeMap<u64, Kind>> {
        let mut numbers = BTreeMap::new();
        for (name, part) in self.parts(volume)? {
            if part == Part::Stream {
                let kind = numbers.entry(name.number).or_insert(name.kind);
                *kind = name.kind.min(*kind);
            }
        }
        numbers.extend(
            self.lost(volume)?
                .into_iter()
                .map(|name| (name.number, name.kind)),
        );
        Ok(numbers)
    }

    /// The newest generations of which there is nothing but the manifest: somebody has removed their data. One that was cut off
    /// before it was whole has a file that was not put in place; of an older one nothing is left but what pruning did not come to.
    fn lost(&self, volume: &str) -> Result<Vec<Name>> {
        let names = names(&self.folder(volume)?)?;
        let parts: Vec<_> = names.iter().filter_map(|name| Name::parse(name)).collect();
        let streams = parts.iter().filter(|(_, part)| *part == Part::Stream);
        let last = streams.map(|(name, _)| name.number).max();
        let is_cut_off = |name: &Name| {
            let mut unfinished = names.iter().filter_map(|name| files::unfinished(name));
            unfinished.any(|of| name.is_of(of))
        };
        let manifests = parts
            .iter()
            .filter(|(name, part)| *part == Part::Manifest && Some(name.number) > last);
        let lost = manifests
            .map(|(name, _)| *name)
            .filter(|name| !is_cut_off(name));
        Ok(lost.collect())
    }

    /// All files of a volume's generations.
    fn parts(&self, volume: &str) -> Result<Vec<(Name, Part)>> {
        let names = names(&self.folder(volume)?)?;
        Ok(names.iter().filter_map(|name| Name::parse(name)).collect())
    }

    /// What may be folders of volumes.
    fn folders(&self) -> Result<Vec<String>> {
        let mut names = names(&self.root)?;
        names.retain(|name| {
            folder(&self.root, name).is_ok_and(|path| is_folder(&path))
                && !place::is_of_fsck(&self.root, name)
        });
        Ok(names)
    }

    fn folder(&self, volume: &str) -> Result<PathBuf> {
        let folder = folder(&self.root, volume)?;
        match fs::symlink_metadata(&folder) {
            Ok(metadata) if !metadata.is_dir() => Err(Error::Damaged(format!(
                "{}: it is no folder",
                folder.display()
            ))),
            _ => Ok(folder),
        }
    }

    fn no_volume(&self, volume: &str) -> Error {
        Error::NotFound(format!(
            "{0} has no backups of {volume}; `thinctl backups {0}` lists what it has",
            self.root.display()
        ))
    }
}
