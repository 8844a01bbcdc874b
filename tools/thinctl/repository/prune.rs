// SPDX-License-Identifier: GPL-2.0

//! Removes old generations.

use std::io::{
    ErrorKind,
    Write, //
};

use serde::Serialize;

use super::{
    add::{
        put,
        About, //
    },
    fold::Fold,
    generation::{
        Generation,
        Kind, //
    },
    lock::Locked,
    name::{
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
        remove,
        sync_folder, //
    },
    stream::{
        Changes,
        Header,
        Writer, //
    },
};

/// What pruning has done.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Pruned {
    /// The generation that has become a full one.
    pub made_full: Option<u64>,
    /// The generations that are gone.
    pub removed: Vec<u64>,
}

impl Locked {
    /// Keeps the last generations of a volume, and removes those before. `progress` is told how many bytes of the volume
    /// were folded, and can stop it.
    pub fn prune(
        &self,
        volume: &str,
        keep: usize,
        progress: &mut dyn FnMut(u64) -> Result,
    ) -> Result<Pruned> {
        // Those that go need not be readable.
        let generations: Vec<_> = self
            .numbers(volume)?
            .into_iter()
            .map(|(number, kind)| Name { number, kind })
            .collect();
        if generations.is_empty() {
            return Err(self.no_volume(volume));
        }
        if keep == 0 {
            return Err(Error::Refused(format!(
                "{volume}: one generation must be kept"
            )));
        }
        let Some(first) = generations.len().checked_sub(keep) else {
            return Ok(Pruned::default());
        };
        let Some(&oldest) = generations.get(first).filter(|_| first > 0) else {
            return Ok(Pruned::default());
        };
        let mut pruned = Pruned::default();
        // Whatever is removed, it can be restored from what is left: it was read to its end before.
        if oldest.kind == Kind::Full {
            self.read_through(volume, oldest, progress)?;
        } else {
            let before = generations.get(..first).unwrap_or_default();
            let base = before.iter().rposition(|one| one.kind == Kind::Full);
            let base = base.filter(|older| *older > 0);
            if let Some(base) = base.and_then(|older| before.get(older)) {
                self.read_through(volume, oldest, progress)?;
                // What the copy does not need makes room for it.
                pruned.removed = self.remove_before(volume, base.number)?;
            }
            self.make_full(volume, oldest, progress)?;
            pruned.made_full = Some(oldest.number);
        }
        pruned
            .removed
            .extend(self.remove_before(volume, oldest.number)?);
        Ok(pruned)
    }

    /// Gives an error unless a generation can be restored.
    fn read_through(
        &self,
        volume: &str,
        generation: Name,
        progress: &mut dyn FnMut(u64) -> Result,
    ) -> Result {
        self.drain(self.restore(volume, Some(generation.number))?, progress)
    }

    fn drain(&self, mut fold: Fold, progress: &mut dyn FnMut(u64) -> Result) -> Result {
        while fold.next()?.is_some() {
            // It is not folded, but can be stopped.
            progress(0)?;
        }
        Ok(())
    }

    /// Adds the full one of an incremental generation.
    fn make_full(
        &self,
        volume: &str,
        generation: Name,
        progress: &mut dyn FnMut(u64) -> Result,
    ) -> Result {
        let mut fold = self.restore(volume, Some(generation.number))?;
        let right = fold.header().clone();
        let data = right.data;
        let check = |header: &Header| {
            if *header == right {
                Ok(())
            } else {
                Err(Error::Damaged(format!(
                    "{volume}: the fold has a wrong header"
                )))
            }
        };
        let folder = self.folder(volume)?;
        let may = || self.check();
        let write = |w: &mut dyn Write| {
            let mut writer = Writer::new(w, fold.header())?;
            while let Some(record) = fold.next()? {
                writer.record(&record)?;
                progress(record.len())?;
            }
            writer.finish().map(drop)
        };
        let Generation {
            number,
            created,
            source,
            ..
        } = Generation::load(&folder, generation)?;
        let about = About {
            number,
            created,
            source,
        };
        match put(&folder, about, check, &may, write) {
            Err(Error::Io(_, e)) if e.kind() == ErrorKind::StorageFull => {
                let what = format!(
                    "{volume}: there is no room for a full copy of generation {number}, which has {data} bytes before \
                     compression, beside those that it is made of"
                );
                Err(Error::Io(what, e))
            }
            made => made.map(drop),
        }
    }

    /// Goes on with what [`prune`](Self::prune) has left.
    pub(super) fn finish_prune(&self, volume: &str) -> Result {
        let parts = self.parts(volume)?;
        let full = |incremental: Name| Name {
            kind: Kind::Full,
            ..incremental
        };
        let twice = parts
            .iter()
            .filter(|(name, part)| (name.kind, *part) == (Kind::Incremental, Part::Stream))
            .map(|(name, _)| *name)
            .filter(|name| parts.contains(&(full(*name), Part::Stream)))
            .max();
        let Some(name) = twice else {
            return Ok(());
        };
        let folder = self.folder(volume)?;
        // It may be long ago that it was made, and all that it replaces may still be there.
        let read = || {
            let full = Generation::load(&folder, full(name))?;
            self.read_through(volume, full.name(), &mut |_| Ok(()))?;
            Ok(full)
        };
        let full = match read() {
            Err(e @ (Error::Damaged(_) | Error::Io(..))) => {
                // It goes only if all that it replaces was read to its end.
                let rest = self.restore_without(volume, full(name));
                let rest = rest.and_then(|rest| self.drain(rest, &mut |_| Ok(())));
                match (rest, &e) {
                    (Err(_), _) => return Err(e),
                    // A disk may have failed for a moment.
                    (Ok(()), Error::Io(..)) => match read() {
                        Ok(full) => full,
                        Err(_) => return self.remove_generation(volume, full(name)),
                    },
                    (Ok(()), _) => return self.remove_generation(volume, full(name)),
                }
            }
            full => full?,
        };
        if full.header.to != Generation::load(&folder, name)?.header.to {
            return Err(Error::Damaged(format!(
                "{volume}: generation {} is there twice, and not the same",
                full.number
            )));
        }
        self.remove_before(volume, full.number).map(drop)
    }

    /// Removes what is older than this full generation, and its incremental one.
    ///
    /// Newer ones go first, so that what is there can be restored at any time. The incremental one of the generation goes
    /// last: until then, it tells that there is something to finish.
    fn remove_before(&self, volume: &str, number: u64) -> Result<Vec<u64>> {
        let mut old: Vec<_> = self
            .parts(volume)?
            .into_iter()
            .filter(|(name, part)| *part == Part::Stream && name.number < number)
            .map(|(name, _)| name)
            .collect();
        old.sort();
        let mut removed: Vec<_> = old.iter().map(|name| name.number).collect();
        removed.dedup();
        let itself = Name {
            number,
            kind: Kind::Incremental,
        };
        for name in old.into_iter().rev().chain([itself]) {
            self.remove_generation(volume, name)?;
        }
        Ok(removed)
    }

    fn remove_generation(&self, volume: &str, name: Name) -> Result {
        let folder = self.folder(volume)?;
        self.check()?;
        remove(&folder.join(name.stream()))?;
        sync_folder(&folder)?;
        remove(&folder.join(name.manifest()))
    }
}
