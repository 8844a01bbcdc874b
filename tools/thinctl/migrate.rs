// SPDX-License-Identifier: GPL-2.0

//! Moving a volume to another pool, while it is in use.
//!
//! Each pass takes a snapshot of the volume and copies what has changed since the one before. When little is left, the
//! volume is suspended for the last pass, and its device gets a table of the other pool.

use serde::{
    Deserialize,
    Serialize, //
};

use crate::{
    copy::{
        data_bytes,
        for_chunks,
        Target, //
    },
    dm::Line,
    error::{
        Error,
        Result, //
    },
    extents::Kind,
    kept::{
        Kept,
        Owner, //
    },
    naming::contents,
    pool::ActiveVolume,
    send::{
        differences,
        Source, //
    },
    session::Session,
};

/// With so many bytes left, the volume is suspended for the last pass.
const SMALL: u64 = 16 << 20;

/// After so many passes it is, whatever is left.
const MAX_PASSES: u32 = 12;

/// A migration that is going on.
#[derive(Clone, Serialize, Deserialize)]
struct Migration {
    /// The pool that the volume goes to.
    to_pool: String,
    /// The id that it is to have there.
    to_id: u32,
    /// The id that it has meanwhile.
    temporary: u32,
    /// The snapshot whose content was copied.
    copied: Option<u32>,
    /// The snapshot whose content is being copied.
    copying: Option<u32>,
    /// Whether volume `to_id` was about to be made.
    switching: bool,
}

/// What a migration has done.
#[derive(Debug, Serialize)]
pub struct Migrated {
    /// How many passes were made in this run.
    pub passes: u32,
    /// How many bytes were copied in this run.
    pub copied: u64,
    /// How many bytes were copied while the volume was suspended.
    pub copied_suspended: u64,
    /// How long it was suspended, in seconds.
    pub suspended: f64,
    /// The devices that have a table of the other pool now.
    pub switched: Vec<String>,
}

/// Moves volume `id` of one pool to another one, where it gets the id `to_id`. `progress` is told of how much a pass has
/// to copy, and of each piece of data.
pub fn migrate(
    from: &Session,
    id: u32,
    to: &Session,
    to_id: u32,
    mut progress: impl FnMut(Option<u64>, u64),
) -> Result<Migrated> {
    let file = format!("migrate-{id}.json");
    let _lock = from
        .home
        .try_lock(&format!("migrate-{id}.lock"))?
        .ok_or_else(|| Error::Busy(format!("another thinctl is migrating volume {id}")))?;
    to.pool.check_writable(&to.dm)?;
    let mut run = Run {
        from,
        id,
        to,
        migration: begin(from, id, to, to_id, &file)?,
        file,
        progress: &mut progress,
        result: Migrated {
            passes: 0,
            copied: 0,
            copied_suspended: 0,
            suspended: 0.0,
            switched: Vec::new(),
        },
    };
    run.run()?;
    Ok(run.result)
}

/// Goes on with a migration, or begins one.
fn begin(from: &Session, id: u32, to: &Session, to_id: u32, file: &str) -> Result<Migration> {
    if let Some(migration) = from.home.load::<Migration>(file)? {
        if (migration.to_pool.as_str(), migration.to_id) != (to.pool.name.as_str(), to_id) {
            return Err(Error::Refused(format!(
                "a migration of volume {id} to volume {} of pool {} is not finished",
                migration.to_id, migration.to_pool
            )));
        }
        return Ok(migration);
    }
    if !from.exists(id)? {
        return Err(from.no_volume(id));
    }
    if to.exists(to_id)? {
        return Err(to.exists_already(to_id));
    }
    let active = from.active(id)?;
    if active.len() > 1 {
        // They could not be given their new tables at the same time.
        return Err(Error::Refused(format!(
            "volume {id} is active as several devices"
        )));
    }
    for volume in active {
        if volume
            .info
            .uuid
            .is_some_and(|uuid| uuid.starts_with("LVM-"))
        {
            return Err(Error::Refused(format!(
                "{} belongs to lvm2, which would not know of a new table; deactivate it first",
                volume.info.name
            )));
        }
    }
    let migration = Migration {
        to_pool: to.pool.name.clone(),
        to_id,
        temporary: to.new_volume()?,
        copied: None,
        copying: None,
        switching: false,
    };
    to.keep(migration.temporary, || from.home.store(file, &migration))?;
    Ok(migration)
}

struct Run<'a> {
    from: &'a Session,
    id: u32,
    to: &'a Session,
    migration: Migration,
    file: String,
    progress: &'a mut dyn FnMut(Option<u64>, u64),
    result: Migrated,
}

impl Run<'_> {
    fn run(&mut self) -> Result {
        if self.migration.switching {
            if self.to.exists(self.migration.to_id)? && self.is_unchanged()? {
                return self.finish();
            }
            // The volume was written to in its old pool since.
            self.to.delete(self.migration.to_id)?;
            self.migration.switching = false;
            self.store()?;
        }
        let mut last = u64::MAX;
        let live = loop {
            let copied = self.pass()?;
            let live = self.from.active(self.id)?;
            if live.is_empty() {
                self.switch(&live)?;
                return self.finish();
            }
            if copied <= SMALL || copied >= last || self.result.passes >= MAX_PASSES {
                break live;
            }
            last = copied;
        };

        let mut suspended = Vec::new();
        let begun = std::time::Instant::now();
        for volume in &live {
            suspended.push(self.from.suspend(&volume.info.name)?);
        }
        let copied = self.pass().and_then(|copied| {
            self.result.copied_suspended = copied;
            self.switch(&live)
        });
        if copied.is_err() {
            for volume in &live {
                self.from.dm.clear(&volume.info.name)?;
            }
        }
        for entry in suspended.iter().rev() {
            self.from.resume(entry)?;
        }
        self.result.suspended = begun.elapsed().as_secs_f64();
        copied?;
        self.finish()
    }

    /// Whether nobody has used the volume in its old pool since all of it was copied.
    fn is_unchanged(&self) -> Result<bool> {
        let (Some(copied), None) = (self.migration.copied, self.migration.copying) else {
            return Ok(false);
        };
        if !self.from.active(self.id)?.is_empty() {
            return Ok(false);
        }
        let snap = self.from.metadata_snap()?;
        let view = snap.view()?;
        let now = contents(self.from, &view, self.id)?;
        Ok(now.frozen && now.digest == contents(self.from, &view, copied)?.digest)
    }

    /// Copies what has changed since the last pass; says how much that was.
    fn pass(&mut self) -> Result<u64> {
        let (from, to) = (self.from, self.to);
        let snapshot = match self.migration.copying {
            Some(snapshot) if from.exists(snapshot)? => snapshot,
            _ => {
                let snapshot = from.snapshot(self.id)?;
                self.migration.copying = Some(snapshot);
                from.keep(snapshot, || self.store())?;
                snapshot
            }
        };
        let active = from.active_size(self.id)?;
        let snap = from.metadata_snap()?;
        let view = snap.view()?;
        let end = contents(from, &view, snapshot)?.end;
        let mut extents = differences(from, &view, self.migration.copied, snapshot)?;
        snap.release()?;

        let block_size = from.pool.block_size;
        let mapped = end.max(extents.end).saturating_mul(block_size);
        let size = active.unwrap_or(0).max(mapped);
        let total = data_bytes(&mut extents, block_size, 0, size)?;
        (self.progress)(Some(total), 0);

        let source = Source::open(from, snapshot, size)?;
        let activation = to.activate(self.migration.temporary, size.max(1), false)?;
        let mut target = Target::open(&activation.path(), to.pool.block_size)?;
        for_chunks(&mut extents, block_size, 0, size, |chunk| {
            match chunk.kind {
                Kind::Mapped => {
                    target.copy(source.device(), chunk.offset, chunk.len as usize)?;
                    (self.progress)(None, chunk.len);
                    Ok(())
                }
                Kind::Unmapped => target.discard(chunk.offset, chunk.len),
            }
        })?;
        target.flush()?;
        drop(target);
        activation.remove()?;
        drop(source);

        let before = self.migration.copied.replace(snapshot);
        self.migration.copying = None;
        self.store()?;
        if let Some(before) = before {
            from.delete(before)?;
        }
        self.result.passes = self.result.passes.saturating_add(1);
        self.result.copied = self.result.copied.saturating_add(total);
        Ok(total)
    }

    /// Gives the copy its id, and the volume's devices, which are suspended, tables of the new pool.
    fn switch(&mut self, live: &[ActiveVolume]) -> Result {
        self.migration.switching = true;
        self.store()?;
        self.to
            .snapshot_as(self.migration.to_id, self.migration.temporary)?;
        for volume in live {
            let mut words = self.to.pool.thin_words(self.migration.to_id);
            if let Some(origin) = volume.origin {
                words = format!("{words} {origin}");
            }
            let line = Line {
                start: 0,
                sectors: volume.size / thin_metadata::format::SECTOR_SIZE,
                target: "thin".to_owned(),
                words,
            };
            let name = &volume.info.name;
            self.from.dm.load(name, &line, volume.info.read_only)?;
            self.result.switched.push(name.clone());
        }
        Ok(())
    }

    /// Deletes what is of no use any more.
    fn finish(&mut self) -> Result {
        let Migration {
            copied, copying, ..
        } = self.migration;
        for snapshot in copied.into_iter().chain(copying) {
            self.from.delete(snapshot)?;
        }
        self.to.delete(self.migration.temporary)?;
        self.from.home.remove(&self.file)
    }

    fn store(&self) -> Result {
        self.from.home.store(&self.file, &self.migration)
    }
}

/// What migrations keep in a pool that are not finished: snapshots of what goes to another one, and what has come so far
/// from another one.
pub fn kept(session: &Session) -> Result<Vec<Kept>> {
    let mut found = Vec::new();
    for home in session.home.all()? {
        for id in home.list("migrate-", ".json")? {
            let migration = home.load::<Migration>(&format!("migrate-{id}.json"))?;
            let (Some(migration), Ok(volume)) = (migration, id.parse()) else {
                continue;
            };
            let to = format!("{}:{}", migration.to_pool, migration.to_id);
            let mut add = |id, volume, place: &str| {
                found.push(Kept {
                    id,
                    volume,
                    owner: Owner::Migrate,
                    place: place.to_owned(),
                });
            };
            if home == session.home {
                for id in migration.copied.into_iter().chain(migration.copying) {
                    add(id, volume, &to);
                }
            }
            if migration.to_pool == session.pool.name {
                add(migration.temporary, migration.to_id, "another pool");
            }
        }
    }
    Ok(found)
}
