// SPDX-License-Identifier: GPL-2.0

//! Reads whether backups are all right.

use std::{
    fs::OpenOptions,
    io::BufReader,
    path::Path, //
};

use serde::Serialize;

use super::{
    generation::{
        check_link,
        Generation,
        Kind, //
    },
    name::Name,
    Repository,
};
use crate::{
    error::{
        Error,
        Result, //
    },
    files::open_regular,
    stream::{
        Changes,
        Reader, //
    },
};

/// What verifying has found.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Verification {
    /// How many generations were looked at.
    pub generations: u64,
    /// How many bytes of streams were read.
    pub bytes: u64,
    /// Each generation that cannot be restored.
    pub problems: Vec<Problem>,
}

/// A generation that cannot be restored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// The volume.
    pub volume: String,
    /// Its generation.
    pub generation: u64,
    /// Why it cannot.
    pub problem: String,
}

impl Verification {
    fn add(&mut self, other: Self) {
        self.generations = self.generations.saturating_add(other.generations);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.problems.extend(other.problems);
    }
}

impl Repository {
    /// Reads all backups of one volume, or of all, to the last byte. `progress` is told how many bytes of streams were
    /// read, and can stop it.
    pub fn verify(
        &self,
        volume: Option<&str>,
        progress: &mut dyn FnMut(u64) -> Result,
    ) -> Result<Verification> {
        let volumes = match volume {
            Some(volume) if self.numbers(volume)?.is_empty() => return Err(self.no_volume(volume)),
            Some(volume) => vec![volume.to_owned()],
            None => self.volumes()?,
        };
        let mut found = Verification::default();
        for volume in volumes {
            loop {
                let before = self.parts(&volume)?;
                let one = self.verify_volume(&volume, progress)?;
                // If another process has removed backups meanwhile, it was something else that was looked at.
                if one.problems.is_empty() || self.parts(&volume)? == before {
                    found.add(one);
                    break;
                }
            }
        }
        Ok(found)
    }

    fn verify_volume(
        &self,
        volume: &str,
        progress: &mut dyn FnMut(u64) -> Result,
    ) -> Result<Verification> {
        let folder = self.folder(volume)?;
        let mut found = Verification::default();
        // The one before, if it can be restored.
        let mut last: Option<Generation> = None;
        for (number, kind) in self.numbers(volume)? {
            found.generations = found.generations.saturating_add(1);
            let mut count = |bytes: u64| {
                found.bytes = found.bytes.saturating_add(bytes);
                progress(bytes)
            };
            let result = read(&folder, Name { number, kind }, &mut count)
                .and_then(|generation| follow(last.as_ref(), &generation).map(|()| generation));
            last = match result {
                Ok(generation) => Some(generation),
                Err(e @ (Error::Damaged(_) | Error::Io(..))) => {
                    found.problems.push(Problem {
                        volume: volume.to_owned(),
                        generation: number,
                        problem: e.to_string(),
                    });
                    None
                }
                Err(e) => return Err(e),
            };
        }
        Ok(found)
    }
}

fn follow(last: Option<&Generation>, generation: &Generation) -> Result {
    match (generation.kind, last) {
        (Kind::Full, _) => Ok(()),
        (Kind::Incremental, Some(last)) => check_link(last, generation),
        (Kind::Incremental, None) => Err(Error::Damaged(
            "the generation before is missing or damaged".into(),
        )),
    }
}

/// Reads a generation to the last byte.
fn read(folder: &Path, name: Name, progress: &mut dyn FnMut(u64) -> Result) -> Result<Generation> {
    let generation = Generation::load(folder, name)?;
    let path = folder.join(name.stream());
    let damaged = |what: &str| Error::Damaged(format!("{}: {what}", path.display()));
    let file =
        open_regular(&path, OpenOptions::new().read(true)).map_err(Error::io(path.display()))?;
    let len = file.metadata().map_err(Error::io(path.display()))?.len();
    let mut reader = Reader::new(BufReader::new(file))?;
    let mut read = 0;
    while reader.next()?.is_some() {
        let position = reader.position();
        progress(position.saturating_sub(read))?;
        read = position;
    }
    progress(reader.position().saturating_sub(read))?;
    if *reader.header() != generation.header || reader.totals() != Some(&generation.totals) {
        return Err(damaged("the stream is not that of the manifest"));
    }
    if len != reader.position() {
        return Err(damaged("something follows the stream"));
    }
    Ok(generation)
}
