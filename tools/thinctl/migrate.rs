// SPDX-License-Identifier: GPL-2.0

//! Moving a volume to another pool, while it is in use.
//!
//! Each pass takes a snapshot of the volume and copies what has changed since the one before. When little is left, the
//! volume is suspended for the last pass, and its device gets a table of the other pool. A volume that is not active is
//! copied until nobody has used it during a pass.
//!
//! It may be cut off anywhere, and it may be long until it goes on. So nothing is taken for granted of what was seen
//! before: the copy counts only if nobody has used the volume in its old pool since it was copied, and it is given up
//! only if nobody has used it. The snapshot that was copied is what tells, so it stays until all else is done.

use devicemapper::Device;
use serde::{
    Deserialize,
    Serialize, //
};

use crate::{
    backing,
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
    lvm2,
    naming::{
        contents,
        device_id, //
    },
    numbering,
    pool::{
        node,
        ActiveVolume,
        IGNORES_DISCARDS, //
    },
    room::Room,
    send::{
        differences,
        Source, //
    },
    session::{
        create_snap,
        Session, //
    },
    unchanged::{
        delete_unchanged,
        is_unchanged, //
    },
};

/// With so many bytes left, the volume is suspended for the last pass.
const SMALL: u64 = 16 << 20;

/// After so many passes it is, whatever is left.
const MAX_PASSES: u32 = 12;

/// How far a migration is.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Stage {
    /// The volume is being copied.
    Copying,
    /// The copy may have got its id, and the volume's device may have its new table.
    Switching,
    /// The volume is in its new pool, and what is of no use any more may be deleted in part.
    Done,
}

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
    /// The snapshot whose content is being copied. There may be none of this id yet.
    copying: Option<u32>,
    /// A snapshot that was copied before, and is of no use any more.
    before: Option<u32>,
    /// How far it is.
    stage: Stage,
}

impl Migration {
    /// The snapshot whose content the copy has, if it has its id.
    fn last(&self) -> Option<u32> {
        // It gets it when all of the last pass is there.
        self.copying.or(self.copied)
    }
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

/// What external origin a volume has. Its metadata do not tell.
#[derive(Clone, Copy)]
pub enum Origin {
    /// Nobody has said.
    Unknown,
    /// None.
    None,
    /// This one.
    Device(Device),
}

impl Origin {
    fn device(self) -> Option<Device> {
        match self {
            Self::Unknown | Self::None => None,
            Self::Device(device) => Some(device),
        }
    }
}

/// How a volume is to be moved.
pub struct Options {
    /// The id that it gets in the other pool.
    pub to_id: u32,
    /// Whether to delete it in its old pool.
    pub delete: bool,
    /// Whether to try it also if there seems to be no room for it.
    pub anyway: bool,
    /// What external origin the volume has, for one that is not active.
    pub origin: Origin,
}

/// Moves volume `id` of one pool to another one. `progress` is told of how much a pass has to copy, and of each piece of
/// data.
pub fn migrate(
    from: &Session,
    id: u32,
    to: &Session,
    options: &Options,
    mut progress: impl FnMut(Option<u64>, u64),
) -> Result<Migrated> {
    lvm2::check_migrates_to(&to.pool, options.to_id)?;
    if options.delete {
        lvm2::check_deletes(&from.pool, id)?;
    }
    numbering::check(from)?;
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
        migration: begin(from, id, to, options.to_id, &file)?,
        room: Room::new(to, options.anyway),
        origin: options.origin,
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
    match run.run(options.delete) {
        Err(e) if run.migration.copied.is_none() && run.migration.copying.is_none() => {
            // Nothing was done that could be gone on with.
            run.delete_own()?;
            Err(e)
        }
        result => result.map(|()| run.result),
    }
}

/// Goes on with a migration, or begins one.
fn begin(from: &Session, id: u32, to: &Session, to_id: u32, file: &str) -> Result<Migration> {
    let known = from.home.load::<Migration>(file)?;
    match &known {
        Some(known) if (known.to_pool.as_str(), known.to_id) != (to.pool.name.as_str(), to_id) => {
            return Err(Error::Refused(format!(
                "a migration of volume {id} to volume {} of pool {} is not finished",
                known.to_id, known.to_pool
            )));
        }
        // The copy has its id, or the volume is given up already.
        Some(known) if known.stage != Stage::Copying => {}
        _ => {
            if !from.exists(id)? {
                return Err(from.no_volume(id));
            }
            if to.exists(to_id)? {
                return Err(to.exists_already(to_id));
            }
        }
    }
    // What was so when the migration began may be otherwise when it goes on, and nothing is changed before.
    device(from, id, to)?;
    if let Some(migration) = known {
        return resume(from, id, to, migration, file);
    }
    let migration = Migration {
        to_pool: to.pool.name.clone(),
        to_id,
        temporary: to.new_volume()?,
        copied: None,
        copying: None,
        before: None,
        stage: Stage::Copying,
    };
    to.keep(migration.temporary, || from.home.store(file, &migration))?;
    Ok(migration)
}

/// Makes up for what may have happened between a migration's steps.
fn resume(
    from: &Session,
    id: u32,
    to: &Session,
    mut migration: Migration,
    file: &str,
) -> Result<Migration> {
    if let Some(before) = migration.before.take() {
        from.delete(before)?;
    }
    match migration.stage {
        Stage::Copying => {
            let mut is_of_use = to.exists(migration.temporary)?
                && !(migration.copying.is_some() && Target::is_spoilt_when_cut_off(&to.pool));
            // Somebody may have deleted what the next pass would be compared with.
            for snapshot in migration.copied.into_iter().chain(migration.copying) {
                is_of_use = is_of_use && from.exists(snapshot)?;
            }
            if !is_of_use {
                start_over(from, to, &mut migration, file)?;
            }
        }
        Stage::Switching => {}
        // It was done then. The copy may be gone since, and the volume used, so all of it is looked at again.
        Stage::Done => match migration.last() {
            Some(last) if from.exists(last)? => migration.stage = Stage::Switching,
            _ if to.exists(migration.to_id)? => {}
            // Nothing else may have the content any more.
            _ if to.exists(migration.temporary)? => {
                return Err(Error::Refused(format!(
                    "volume {id} was migrated before, and volume {} of pool {} is not there any more; volume {} has what \
                     was copied",
                    migration.to_id, to.pool.name, migration.temporary
                )));
            }
            _ => {
                from.home.remove(file)?;
                return Err(Error::Refused(format!(
                    "volume {id} was migrated before, and volume {} of pool {} is not there any more; nothing was deleted",
                    migration.to_id, to.pool.name
                )));
            }
        },
    }
    Ok(migration)
}

/// Begins with an empty copy again, as the one that there was is of no use.
fn start_over(from: &Session, to: &Session, migration: &mut Migration, file: &str) -> Result {
    to.delete(migration.temporary)?;
    migration.temporary = to.new_volume()?;
    migration.before = migration.copied.take();
    to.keep(migration.temporary, || from.home.store(file, &migration))?;
    if let Some(before) = migration.before.take() {
        from.delete(before)?;
    }
    // Nothing of it is in the new copy.
    if let Some(copying) = migration.copying.take() {
        from.delete(copying)?;
        from.home.store(file, &migration)?;
    }
    Ok(())
}

/// The device of a volume, if it is active; an error if it cannot be given a table of another pool.
fn device(from: &Session, id: u32, to: &Session) -> Result<Option<ActiveVolume>> {
    let mut active = from.active(id)?;
    if active.len() > 1 {
        // They could not be given their new tables at the same time.
        return Err(Error::Refused(format!(
            "volume {id} is active as several devices"
        )));
    }
    let device = active.pop();
    if let Some(volume) = &device {
        let name = &volume.info.name;
        if volume.is_of_lvm2() {
            return Err(Error::Refused(format!(
                "{name} belongs to lvm2, which would not know of a new table; deactivate it first"
            )));
        }
        let (before, after) = (from.pool.sector_size()?, to.pool.sector_size()?);
        if after > before {
            return Err(Error::Refused(format!(
                "{name} is in use with sectors of {before} bytes, and those of pool {} have {after}; deactivate it first",
                to.pool.name
            )));
        }
        let home = from.home.path("");
        if backing::lies_on(&home, volume.info.device)? {
            return Err(Error::Refused(format!(
                "{} lies on {name}, and must be written to while that is suspended: see --home",
                home.display()
            )));
        }
    }
    Ok(device)
}

/// What has become of the volume in its new pool.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copy {
    /// There is none yet.
    Missing,
    /// It is another volume than the one that was copied.
    Foreign,
    /// It was copied.
    There,
}

struct Run<'a> {
    from: &'a Session,
    id: u32,
    to: &'a Session,
    migration: Migration,
    room: Room,
    origin: Origin,
    file: String,
    progress: &'a mut dyn FnMut(Option<u64>, u64),
    result: Migrated,
}

impl Run<'_> {
    fn run(&mut self, delete: bool) -> Result {
        loop {
            match self.migration.stage {
                Stage::Copying => self.copy_and_switch()?,
                Stage::Switching => self.look_at_copy(delete)?,
                Stage::Done => return self.finish(delete),
            }
        }
    }

    /// Copies the volume until a pass has all of it, and switches to the copy.
    fn copy_and_switch(&mut self) -> Result {
        let mut last = u64::MAX;
        loop {
            if !self.from.exists(self.id)? {
                return Err(self.from.no_volume(self.id));
            }
            self.look_at_origin()?;
            let copied = self.pass()?;
            match device(self.from, self.id, self.to)? {
                Some(device)
                    if copied <= SMALL || copied >= last || self.result.passes >= MAX_PASSES =>
                {
                    return self.switch_active(&device.info.name);
                }
                Some(_) => {}
                None if self.is_unchanged()? => {
                    self.enter(Stage::Switching)?;
                    return self.name_copy();
                }
                // It was used during the pass.
                None => {}
            }
            last = copied;
        }
    }

    /// Finds out what is read where nothing is mapped.
    fn look_at_origin(&mut self) -> Result {
        if let Some(device) = device(self.from, self.id, self.to)? {
            self.origin = device.origin.map_or(Origin::None, Origin::Device);
        }
        let (before, after) = (self.from.pool.block_size, self.to.pool.block_size);
        // Where blocks are copied and unmapped whole, it does not matter.
        let is_whole = before.is_multiple_of(after)
            && after.is_power_of_two()
            && self.to.pool.status(&self.to.dm)?.discard != IGNORES_DISCARDS;
        match self.origin {
            Origin::Unknown if !is_whole => Err(Error::Refused(format!(
                "the blocks of pool {} do not fit those of pool {}, so it matters whether volume {} has an external \
                 origin, which only shows while it is active: --origin DEVICE or --no-origin tell",
                self.to.pool.name, self.from.pool.name, self.id
            ))),
            _ => Ok(()),
        }
    }

    /// Suspends the volume's device, copies what is left, and gives the device its new table.
    fn switch_active(&mut self, name: &str) -> Result {
        // What could have to be waited for is taken before anything is suspended,
        let _turn = self.from.turn(self.id)?;
        let _slot = self.from.keep_slot()?;
        let device = match device(self.from, self.id, self.to)? {
            Some(device) if device.info.name == name => device,
            // It was deactivated meanwhile.
            _ => return Ok(()),
        };
        if device.info.suspended {
            return Err(Error::Busy(format!("somebody else has suspended {name}")));
        }
        // and what must be known if it is cut off is written down.
        self.migration.copying = Some(self.from.free_id()?);
        self.enter(Stage::Switching)?;
        let begun = std::time::Instant::now();
        let entry = self.from.suspend(&device)?;
        let switched = self.last_pass(&device);
        let cleared = match switched {
            Ok(()) => Ok(()),
            Err(_) => self.from.dm.clear(name),
        };
        self.from.resume(&entry)?;
        self.result.suspended += begun.elapsed().as_secs_f64();
        if switched.is_err() {
            self.store()?;
        }
        switched?;
        cleared?;
        self.result.switched.push(name.to_owned());
        Ok(())
    }

    /// What is done while the volume is suspended.
    fn last_pass(&mut self, device: &ActiveVolume) -> Result {
        let Some(snapshot) = self.migration.copying else {
            return Ok(());
        };
        self.check_suspended(device)?;
        let taken = self.from.message(&create_snap(snapshot, self.id));
        if taken.is_err() {
            // If there is one of this id, it is another one.
            self.migration.copying = None;
        }
        taken?;
        self.result.copied_suspended = self.copy(snapshot, false)?;
        self.name_copy()?;
        let line = Line {
            start: 0,
            sectors: device.size / thin_metadata::format::SECTOR_SIZE,
            target: "thin".to_owned(),
            words: self
                .to
                .pool
                .thin_words_over(self.migration.to_id, device.origin),
        };
        self.check_suspended(device)?;
        self.from
            .dm
            .load(&device.info.name, &line, device.info.read_only)
    }

    /// Gives an error unless this device is the volume's only one, and is suspended.
    fn check_suspended(&self, expected: &ActiveVolume) -> Result {
        match device(self.from, self.id, self.to)? {
            Some(found) if found.info.name == expected.info.name && found.info.suspended => Ok(()),
            _ => Err(Error::Busy(format!(
                "somebody else has changed or resumed {}",
                expected.info.name
            ))),
        }
    }

    /// Finds out what a switch has led to, whether this run or another one has begun it.
    fn look_at_copy(&mut self, delete: bool) -> Result {
        let Migration { to_id, .. } = self.migration;
        match self.copy_there()? {
            Copy::Missing => {
                if Target::is_spoilt_when_cut_off(&self.to.pool) {
                    start_over(self.from, self.to, &mut self.migration, &self.file)?;
                }
                return self.enter(Stage::Copying);
            }
            Copy::Foreign => {
                return Err(Error::Refused(format!(
                    "volume {to_id} of pool {} is another one than the copy of volume {}; nothing was deleted",
                    self.to.pool.name, self.id
                )))
            }
            Copy::There => {}
        }
        let Some(last) = self.migration.last() else {
            return self.enter(Stage::Copying);
        };
        let gone = !self.from.exists(self.id)?;
        if gone || self.is_unchanged()? {
            if gone || !delete || delete_unchanged(self.from, last, self.id)? {
                return self.enter(Stage::Done);
            }
            // It was used just now.
            return Ok(());
        }
        let unused = self.to.active(to_id)?.is_empty()
            && delete_unchanged(self.to, self.migration.temporary, to_id)?;
        if !unused {
            return Err(Error::Refused(format!(
                "both were used since volume {} was copied: this one in pool {}, and its copy, volume {to_id} of pool {}; \
                 nothing was deleted",
                self.id, self.from.pool.name, self.to.pool.name
            )));
        }
        self.enter(Stage::Copying)
    }

    /// What volume `to_id` of the other pool is.
    fn copy_there(&self) -> Result<Copy> {
        let Migration {
            to_id, temporary, ..
        } = self.migration;
        self.to.glance(|view| {
            let Some(there) = view.device(device_id(to_id)?)? else {
                return Ok(Copy::Missing);
            };
            let Some(source) = view.device(device_id(temporary)?)? else {
                return Ok(Copy::Foreign);
            };
            // That it was made by the last snapshot of what was copied shows also after it was written to.
            let (made, made_of) = (there.creation_time.get(), source.snapshotted_time.get());
            if made == made_of && made > source.creation_time.get() {
                Ok(Copy::There)
            } else {
                Ok(Copy::Foreign)
            }
        })
    }

    /// Whether nobody has used the volume in its old pool since all of it was copied, nor does now.
    fn is_unchanged(&self) -> Result<bool> {
        let Some(last) = self.migration.last() else {
            return Ok(false);
        };
        if !self.from.active(self.id)?.is_empty() {
            return Ok(false);
        }
        self.from.glance(|view| is_unchanged(view, last, self.id))
    }

    /// Copies what has changed since the last pass; says how much that was.
    fn pass(&mut self) -> Result<u64> {
        let from = self.from;
        let snapshot = match self.migration.copying {
            Some(snapshot) if from.exists(snapshot)? => snapshot,
            _ => {
                let snapshot = from.snapshot(self.id)?;
                self.migration.copying = Some(snapshot);
                from.keep(snapshot, || self.store())?;
                snapshot
            }
        };
        let copied = match self.copy(snapshot, true) {
            Err(e @ Error::NoRoom(_)) if self.migration.copied.is_none() => {
                // Others need the room that it has taken.
                from.delete(snapshot)?;
                self.migration.copying = None;
                return Err(e);
            }
            result => result?,
        };
        self.migration.before = self.migration.copied.replace(snapshot);
        self.migration.copying = None;
        self.store()?;
        if let Some(before) = self.migration.before.take() {
            from.delete(before)?;
        }
        Ok(copied)
    }

    /// Copies what has changed between the snapshot that was copied last and `snapshot`; says how much that was. Whether to
    /// tell of it meanwhile: what is told may go to a file on the volume.
    fn copy(&mut self, snapshot: u32, tell: bool) -> Result<u64> {
        let (from, to) = (self.from, self.to);
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
        let mut progress = |total, bytes| {
            if tell {
                (self.progress)(total, bytes);
            }
        };
        progress(Some(total), 0);
        self.room.check(total)?;

        let source = Source::open(from, snapshot, size)?;
        let temporary = self.migration.temporary;
        let seen = to.pool.size_to_write(size);
        let (activation, origin) = match self.origin.device() {
            None => (to.activate(temporary, seen, false)?, None),
            Some(device) => (
                to.activate_over(temporary, seen, device)?,
                Some(node(device)?),
            ),
        };
        let room = self.room.clone();
        let mut target = Target::open(&activation.path(), &to.pool, origin.as_deref(), room)?;
        for_chunks(&mut extents, block_size, 0, size, |chunk| {
            match chunk.kind {
                Kind::Mapped => {
                    target.copy(source.device(), chunk.offset, chunk.len as usize)?;
                    progress(None, chunk.len);
                    Ok(())
                }
                Kind::Unmapped => target.discard(chunk.offset, chunk.len),
            }
        })?;
        target.flush()?;
        drop(target);
        activation.remove()?;
        drop(source);
        self.result.passes = self.result.passes.saturating_add(1);
        self.result.copied = self.result.copied.saturating_add(total);
        Ok(total)
    }

    /// Gives the copy its id.
    fn name_copy(&self) -> Result {
        self.to
            .snapshot_as(self.migration.to_id, self.migration.temporary)
    }

    /// Deletes what is of no use any more.
    fn finish(&mut self, delete: bool) -> Result {
        // If another run was cut off here, it may have been told to keep the volume.
        let stays = delete
            && self.from.exists(self.id)?
            && match self.migration.last() {
                Some(last) => !delete_unchanged(self.from, last, self.id)?,
                None => true,
            };
        self.delete_own()?;
        if stays {
            return Err(Error::Refused(format!(
                "volume {} was migrated before, and it is not known any more whether it was used since; it was not \
                 deleted",
                self.id
            )));
        }
        Ok(())
    }

    /// Deletes what the migration has made for itself, and forgets it.
    fn delete_own(&self) -> Result {
        let Migration {
            copied, copying, ..
        } = self.migration;
        for snapshot in copied.into_iter().chain(copying) {
            self.from.delete(snapshot)?;
        }
        self.to.delete(self.migration.temporary)?;
        self.from.home.remove(&self.file)
    }

    fn enter(&mut self, stage: Stage) -> Result {
        self.migration.stage = stage;
        self.store()
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
                let ids = migration.copied.into_iter().chain(migration.copying);
                for id in ids.chain(migration.before) {
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
