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

mod switch;

use std::time::Duration;

use devicemapper::Device;
use serde::Serialize;

use crate::{
    backing,
    copy::{
        data_bytes,
        for_chunks,
        Target, //
    },
    device::Device as Opened,
    error::{
        Error,
        Result, //
    },
    extents::Kind,
    lvm2,
    migration::{
        self,
        Copy,
        Migration,
        Stage, //
    },
    naming::contents,
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
        check_no_other_table,
        Session, //
    },
    unchanged::delete_unchanged,
};

/// When a pass had no more bytes than that, or no less than the one before, the volume is suspended for the last one.
const SMALL: u64 = 16 << 20;

/// So many passes are made until there is little enough to copy while the volume is suspended.
const MAX_PASSES: u32 = 12;

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
    /// How much may be copied while the volume is suspended, in bytes.
    pub most: u64,
    /// How long the volume may be suspended.
    pub longest: Duration,
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
    let _lock = migration::lock(&from.home, id)?;
    to.pool.check_writable(&to.dm)?;
    let mut run = Run {
        from,
        id,
        to,
        migration: Migration::begin(from, id, to, options.to_id)?,
        room: Room::new(to, options.anyway),
        origin: options.origin,
        held: None,
        most: options.most,
        longest: options.longest,
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
            run.migration.delete_own(from, id, Some(to))?;
            Err(e)
        }
        result => result.map(|()| run.result),
    }
}

/// The device of a volume, if it is active; an error if it cannot be given a table of another pool.
pub fn device(from: &Session, id: u32, to: &Session) -> Result<Option<ActiveVolume>> {
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
        if !volume.is_whole {
            return Err(Error::Refused(format!(
                "{name} has several targets, of which volume {id} is one; remove it first"
            )));
        }
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
        for home in [from.home.path(""), to.home.path("")] {
            if backing::lies_on(&home, volume.info.device)? {
                return Err(Error::Refused(format!(
                    "{} lies on {name}, and must be written to while that is suspended: see --home",
                    home.display()
                )));
            }
        }
        if backing::device_lies_on(to.pool.device, volume.info.device)? {
            return Err(Error::Refused(format!(
                "pool {} lies on {name}, and must be written to while that is suspended; deactivate {name} first",
                to.pool.name
            )));
        }
    }
    Ok(device)
}

struct Run<'a> {
    from: &'a Session,
    id: u32,
    to: &'a Session,
    migration: Migration,
    room: Room,
    origin: Origin,
    /// The external origin, open for as long as this takes, so that its number is given to no other device between two passes.
    held: Option<(Device, Opened)>,
    most: u64,
    longest: Duration,
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
                    if copied <= SMALL.min(self.most)
                        || copied >= last
                        || self.result.passes >= MAX_PASSES =>
                {
                    let name = &device.info.name;
                    match self.switch_active(name)? {
                        None => return Ok(()),
                        Some(left) if self.result.passes >= MAX_PASSES => {
                            return Err(self.too_much(name, left))
                        }
                        // The next pass copies it.
                        Some(_) => {}
                    }
                }
                Some(_) => {}
                None if self.migration.is_unchanged(self.from, self.id)? => {
                    self.enter(Stage::Switching)?;
                    return self
                        .to
                        .snapshot_as(self.migration.to_id, self.migration.temporary);
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
            // It could not be suspended in the end.
            check_no_other_table(&device.info)?;
            self.origin = device.origin.map_or(Origin::None, Origin::Device);
        }
        self.held = match (self.origin.device(), self.held.take()) {
            (Some(number), Some((held, open))) if number == held => Some((held, open)),
            (Some(number), _) => Some((number, Opened::open(&node(number)?)?)),
            (None, _) => None,
        };
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

    /// Finds out what a switch has led to, whether this run or another one has begun it.
    fn look_at_copy(&mut self, delete: bool) -> Result {
        let Migration { to_id, .. } = self.migration;
        match self.migration.copy(self.to)? {
            Copy::Missing => {
                if !self.from.exists(self.id)? {
                    // What is kept for the next pass may be all that there is of it.
                    return Err(self.from.no_volume(self.id));
                }
                return self.copy_again();
            }
            Copy::Foreign => {
                return Err(Error::Refused(format!(
                    "volume {to_id} of pool {} is another one than the copy of volume {}; nothing was deleted",
                    self.to.pool.name, self.id
                )))
            }
            Copy::There(made) => self.migration.copy_created = Some(made),
        }
        let Some(last) = self.migration.last() else {
            return self.enter(Stage::Copying);
        };
        let gone = !self.from.exists(self.id)?;
        if gone || self.migration.is_unchanged(self.from, self.id)? {
            if gone || !delete || delete_unchanged(self.from, last, self.id)? {
                return self.enter(Stage::Done);
            }
            // It was used just now.
            return Ok(());
        }
        // What the copy has is given up only for what the same volume has now.
        self.migration.check_volume(self.from, self.id)?;
        let unused = self.to.active(to_id)?.is_empty()
            && delete_unchanged(self.to, self.migration.temporary, to_id)?;
        if !unused {
            return Err(Error::Refused(format!(
                "both were used since volume {} was copied: this one in pool {}, and its copy, volume {to_id} of pool {}; \
                 nothing was deleted",
                self.id, self.from.pool.name, self.to.pool.name
            )));
        }
        self.copy_again()
    }

    /// Goes on with what was copied, or begins anew.
    fn copy_again(&mut self) -> Result {
        if !self.migration.is_of_use(self.from, self.to)? {
            self.migration.start_over(self.from, self.id, self.to)?;
        }
        self.enter(Stage::Copying)
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
        let copied = match self.copy(snapshot, None) {
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

    /// Copies what has changed between the snapshot that was copied last and `snapshot`; says how much that was.
    /// While the volume is suspended, there is a `most`: if it is more, nothing is copied. And nothing is told of it then: what is
    /// told may go to a file on the volume.
    fn copy(&mut self, snapshot: u32, most: Option<u64>) -> Result<u64> {
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
        if most.is_some_and(|most| total > most) {
            return Ok(total);
        }
        let mut progress = |total, bytes| {
            if most.is_none() {
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
                Some(Opened::open(&node(device)?)?),
            ),
        };
        let room = self.room.clone();
        let writable = activation.open(Opened::open_for_writing)?;
        let mut target = Target::open(writable, &to.pool, origin, room)?;
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

    /// Deletes what is of no use any more.
    fn finish(&mut self, delete: bool) -> Result {
        self.migration.settle_copy(self.from, self.id, self.to)?;
        // If another run was cut off here, it may have been told to keep the volume, which may have been used since.
        let stays = self.from.exists(self.id)?
            && !match self.migration.last() {
                Some(last) if delete => delete_unchanged(self.from, last, self.id)?,
                Some(_) => self.migration.is_unchanged(self.from, self.id)?,
                None => false,
            };
        self.migration
            .delete_own(self.from, self.id, Some(self.to))?;
        if stays {
            return Err(Error::Refused(format!(
                "volume {} was migrated before, and was used since, or it is not known any more whether it was; it was not \
                 deleted, and volume {} of pool {} has what was copied then",
                self.id, self.migration.to_id, self.to.pool.name
            )));
        }
        Ok(())
    }

    fn enter(&mut self, stage: Stage) -> Result {
        self.migration.stage = stage;
        self.store()
    }

    fn store(&self) -> Result {
        self.migration.store(self.from, self.id)
    }
}
