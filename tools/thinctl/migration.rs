// SPDX-License-Identifier: GPL-2.0

//! What is remembered of a migration, and how far it is when it goes on.
//!
//! It may be long until it goes on, and anybody may have done anything to both pools meanwhile: used the volume, deleted it
//! and made another one of its id, or done that to the copy. So it goes on only with the volume that it began with.
//!
//! At the end, three things go one after the other: the copy without its id, the snapshot that was copied last, and the
//! file. What may have happened before each:
//!
//! - The copy without its id tells which volume the copy is: they share blocks. When that was made is in the file before
//!   it goes, and a snapshot was taken in between, so that whatever is made later is newer.
//! - The snapshot tells whether the volume was used since it was copied. If it was used before the snapshot goes, the
//!   command that goes on says so.
//! - Without the snapshot, nobody knows whether a volume that is still there was used, and that is what the command says.

use serde::{
    Deserialize,
    Serialize, //
};

use crate::{
    copy::Target,
    error::{
        Error,
        Result, //
    },
    home::{
        Home,
        Lock, //
    },
    kept::{
        Kept,
        Owner, //
    },
    migrate::device,
    naming::device_id,
    session::Session,
    tell::tell,
    unchanged::{
        has_part_of,
        is_unchanged, //
    },
};

/// How far a migration is.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The volume is being copied.
    Copying,
    /// The copy may have got its id, and the volume's device may have its new table.
    Switching,
    /// The volume is in its new pool, and what is of no use any more may be deleted in part.
    Done,
}

/// A migration that is going on.
#[derive(Clone, Serialize, Deserialize)]
pub struct Migration {
    /// The pool that the volume comes from.
    #[serde(default)]
    from_pool: Option<String>,
    /// The pool that the volume goes to.
    to_pool: String,
    /// The id that it is to have there.
    pub to_id: u32,
    /// When the volume was made, in snapshots of its pool. One that is made of its id after it was copied is newer.
    #[serde(default)]
    created: Option<u32>,
    /// The id that it has meanwhile.
    pub temporary: u32,
    /// The snapshot whose content was copied.
    pub copied: Option<u32>,
    /// The snapshot whose content is being copied. There may be none of this id yet.
    pub copying: Option<u32>,
    /// The time of the pool's metadata when the snapshot of the last pass was about to be taken. There is none as long as
    /// that is the time.
    #[serde(default)]
    planned_at: Option<u32>,
    /// A snapshot that was copied before, and is of no use any more.
    pub before: Option<u32>,
    /// When the copy got its id, in snapshots of its pool, as soon as all is done.
    #[serde(default)]
    pub copy_created: Option<u32>,
    /// How far it is.
    pub stage: Stage,
}

/// What has become of the volume in its new pool.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Copy {
    /// There is none yet.
    Missing,
    /// It is another volume than the one that was copied.
    Foreign,
    /// It was copied, and got its id then.
    There(u32),
}

/// The file of the migration of volume `id`.
pub fn file(id: u32) -> String {
    format!("migrate-{id}.json")
}

/// Locks the migration of volume `id`.
pub fn lock(home: &Home, id: u32) -> Result<Lock> {
    home.try_lock(&format!("migrate-{id}.lock"))?
        .ok_or_else(|| Error::Busy(format!("another thinctl is migrating volume {id}")))
}

impl Migration {
    /// Goes on with a migration, or begins one.
    pub fn begin(from: &Session, id: u32, to: &Session, to_id: u32) -> Result<Self> {
        let known = from.home.load::<Self>(&file(id))?;
        let now = from.creation_time(id)?;
        if let Some(known) = &known {
            if (known.to_pool.as_str(), known.to_id) != (to.pool.name.as_str(), to_id) {
                return Err(Error::Refused(format!(
                    "a migration of volume {id} to volume {} of pool {} is not finished",
                    known.to_id, known.to_pool
                )));
            }
            known.check_same(from, id, now)?;
        }
        match &known {
            // The copy has its id, or the volume is given up already.
            Some(known) if known.stage != Stage::Copying => {}
            _ => {
                if now.is_none() {
                    return Err(from.no_volume(id));
                }
                if to.exists(to_id)? {
                    return Err(to.exists_already(to_id));
                }
            }
        }
        // What was so when the migration began may be otherwise when it goes on, and nothing is changed before.
        device(from, id, to)?;
        if let Some(mut migration) = known {
            migration.resume(from, id, to)?;
            return Ok(migration);
        }
        let migration = Self {
            from_pool: Some(from.pool.name.clone()),
            to_pool: to.pool.name.clone(),
            to_id,
            created: now,
            temporary: to.new_volume()?,
            copied: None,
            copying: None,
            planned_at: None,
            before: None,
            copy_created: None,
            stage: Stage::Copying,
        };
        to.keep(migration.temporary, || migration.store(from, id))?;
        Ok(migration)
    }

    /// Gives an error if there is a volume `id`, and it is not the one that the migration began with.
    pub fn check_volume(&self, from: &Session, id: u32) -> Result {
        self.check_same(from, id, from.creation_time(id)?)
    }

    fn check_same(&self, from: &Session, id: u32, now: Option<u32>) -> Result {
        if !self.is_another(now) {
            return Ok(());
        }
        let pool = &from.pool.name;
        let what_now = match self.last() {
            Some(last) => format!("`thinctl forget {pool} {last}` gives that up"),
            None => format!(
                "`thinctl forget {} {}` gives that up",
                self.to_pool, self.temporary
            ),
        };
        Err(Error::Refused(format!(
            "volume {id} of pool {pool} is another one than the one whose migration to volume {} of pool {} is not finished; \
             nothing was deleted: {what_now}",
            self.to_id, self.to_pool
        )))
    }

    /// Whether a volume that was made then is not the one that the migration began with.
    fn is_another(&self, now: Option<u32>) -> bool {
        matches!((now, self.created), (Some(now), Some(then)) if now != then)
    }

    /// Makes up for what may have happened between a migration's steps.
    fn resume(&mut self, from: &Session, id: u32, to: &Session) -> Result {
        if let Some(before) = self.before.take() {
            from.delete(before)?;
        }
        match self.stage {
            Stage::Copying => {
                if !self.is_of_use(from, to)? {
                    self.start_over(from, id, to)?;
                }
            }
            Stage::Switching => self.drop_planned(from)?,
            Stage::Done => self.resume_done(from, id, to)?,
        }
        Ok(())
    }

    /// Notes that snapshot `id` of the volume is about to be taken and copied; `time` is that of the pool's metadata.
    pub fn plan(&mut self, id: u32, time: u32) {
        self.copying = Some(id);
        self.planned_at = Some(time);
    }

    /// If the run was cut off before it took the snapshot of the last pass, nothing of that is in the copy, which can be
    /// gone on with. Each snapshot of any volume advances the time.
    fn drop_planned(&mut self, from: &Session) -> Result {
        if self.planned_at == Some(from.pool.stamp()?.time) {
            self.copying = None;
        }
        Ok(())
    }

    /// Looks at what was done. The copy may be gone since, and the volume used.
    fn resume_done(&mut self, from: &Session, id: u32, to: &Session) -> Result {
        let has_last = match self.last() {
            Some(last) => from.exists(last)?,
            None => false,
        };
        let has_temporary = to.exists(self.temporary)?;
        let is_there = matches!(self.copy(to)?, Copy::There(_));
        if has_last && (has_temporary || !is_there) {
            // All of it is looked at again.
            self.stage = Stage::Switching;
            return Ok(());
        }
        if is_there {
            return Ok(());
        }
        let (to_id, pool) = (self.to_id, &to.pool.name);
        if has_temporary {
            // Nothing else may have the content any more.
            return Err(Error::Refused(format!(
                "volume {id} was migrated before, and its copy, volume {to_id} of pool {pool}, is not there any more; volume \
                 {} has what was copied",
                self.temporary
            )));
        }
        from.home.remove(&file(id))?;
        Err(Error::Refused(format!(
            "volume {id} was migrated before, and its copy, volume {to_id} of pool {pool}, is not there any more; nothing \
             was deleted"
        )))
    }

    /// Whether the next pass can go on with what was copied so far.
    pub fn is_of_use(&self, from: &Session, to: &Session) -> Result<bool> {
        let mut is_of_use = to.exists(self.temporary)?
            && !(self.copying.is_some() && Target::is_spoilt_when_cut_off(&to.pool));
        // Somebody may have deleted what the next pass would be compared with, or what was copied in part.
        for snapshot in self.copied.into_iter().chain(self.copying) {
            is_of_use = is_of_use && from.exists(snapshot)?;
        }
        Ok(is_of_use)
    }

    /// Begins with an empty copy again, as the one that there was is of no use.
    pub fn start_over(&mut self, from: &Session, id: u32, to: &Session) -> Result {
        to.delete(self.temporary)?;
        self.temporary = to.new_volume()?;
        self.before = self.copied.take();
        to.keep(self.temporary, || self.store(from, id))?;
        if let Some(before) = self.before.take() {
            from.delete(before)?;
        }
        // Nothing of it is in the new copy.
        if let Some(copying) = self.copying.take() {
            from.delete(copying)?;
            self.store(from, id)?;
        }
        Ok(())
    }

    /// The snapshot whose content the copy has, if it has its id.
    pub fn last(&self) -> Option<u32> {
        // It gets it when all of the last pass is there.
        self.copying.or(self.copied)
    }

    /// What volume `to_id` of the other pool is.
    pub fn copy(&self, to: &Session) -> Result<Copy> {
        to.glance(|view| {
            let Some(there) = view.device(device_id(self.to_id)?)? else {
                return Ok(Copy::Missing);
            };
            let made = there.creation_time.get();
            let is_it = match view.device(device_id(self.temporary)?)? {
                // That it was made by the last snapshot of what was copied shows also after it was written to. But an
                // empty one that was made later looks like that if there was no other snapshot in between.
                Some(source) => {
                    made == source.snapshotted_time.get()
                        && made > source.creation_time.get()
                        && has_part_of(
                            view,
                            self.temporary,
                            self.to_id,
                            source.mapped_blocks.get(),
                        )?
                }
                // It was deleted when all was done.
                None => self.copy_created == Some(made),
            };
            match is_it {
                true => Ok(Copy::There(made)),
                false => Ok(Copy::Foreign),
            }
        })
    }

    /// Gives an error unless the copy is there, by a look at it that tells also what was made after it. From then on, when
    /// it was made tells that it is it.
    pub fn settle_copy(&mut self, from: &Session, id: u32, to: &Session) -> Result {
        if !to.exists(self.temporary)? {
            return Ok(());
        }
        to.advance()?;
        match self.copy(to)? {
            Copy::There(made) => self.copy_created = Some(made),
            _ => {
                return Err(Error::Refused(format!(
                "volume {} of pool {} is not the copy of volume {id} any more; nothing was deleted",
                self.to_id, self.to_pool
            )))
            }
        }
        self.store(from, id)
    }

    /// Whether nobody has used volume `id` since all of it was copied, nor does now.
    pub fn is_unchanged(&self, from: &Session, id: u32) -> Result<bool> {
        let Some(last) = self.last() else {
            return Ok(false);
        };
        if !from.active(id)?.is_empty() {
            return Ok(false);
        }
        from.glance(|view| is_unchanged(view, last, id))
    }

    /// Gives an error if the migration is not to be given up: if it only has to be ended, or if what it keeps may be all
    /// that there is of the volume.
    fn check_given_up(&self, from: &Session, id: u32, to: Option<&Session>) -> Result {
        let now = from.creation_time(id)?;
        let is_gone = now.is_none();
        let Some(to) = to else {
            return match is_gone || self.is_another(now) {
                false => Ok(()),
                true => Err(Error::Refused(format!(
                    "volume {id} is gone, and nobody knows whether its copy is there as long as pool {} is not active",
                    self.to_pool
                ))),
            };
        };
        if self.stage == Stage::Copying || !matches!(self.copy(to)?, Copy::There(_)) {
            if !is_gone {
                return Ok(());
            }
            for snapshot in self.copying.into_iter().chain(self.copied) {
                if from.exists(snapshot)? {
                    return Err(self.is_last(id, &from.pool.name, snapshot));
                }
            }
            return match self.copied.is_some() && to.exists(self.temporary)? {
                true => Err(self.is_last(id, &self.to_pool, self.temporary)),
                false => Ok(()),
            };
        }
        if is_gone || (!self.is_another(now) && self.is_unchanged(from, id)?) {
            return Err(Error::Refused(format!(
                "volume {id} is volume {} of pool {} now: `thinctl migrate` ends its migration when it is called again",
                self.to_id, self.to_pool
            )));
        }
        Ok(())
    }

    /// The error of what must not be given up.
    fn is_last(&self, id: u32, pool: &str, kept: u32) -> Error {
        Error::Refused(format!(
            "volume {id} is gone, its copy, volume {} of pool {}, is not there, and volume {kept} of pool {pool} may be all \
             that there is of it",
            self.to_id, self.to_pool
        ))
    }

    /// Whether it keeps a volume in the pool of `session`; `home` is where the file of the migration is.
    fn keeps(&self, session: &Session, home: &Home, kept: u32) -> bool {
        let comes_from = *home == session.home && self.snapshots().any(|id| id == kept);
        comes_from || (self.to_pool == session.pool.name && self.temporary == kept)
    }

    /// Deletes what the migration has made for itself, and forgets it.
    pub fn delete_own(&self, from: &Session, id: u32, to: Option<&Session>) -> Result {
        let last = self.last();
        let others = self.before.into_iter().chain(self.copied);
        for snapshot in others.filter(|other| Some(*other) != last) {
            from.delete(snapshot)?;
        }
        if let Some(to) = to {
            to.delete(self.temporary)?;
        }
        if let Some(last) = last {
            from.delete(last)?;
        }
        from.home.remove(&file(id))
    }

    /// Writes it down.
    pub fn store(&self, from: &Session, id: u32) -> Result {
        from.home.store(&file(id), self)
    }

    /// The snapshots that it keeps in the pool that the volume comes from.
    fn snapshots(&self) -> impl Iterator<Item = u32> {
        let ids = self.copied.into_iter().chain(self.copying);
        ids.chain(self.before)
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
                for id in migration.snapshots() {
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

/// Gives up the migration that keeps this volume in a pool, with all that it keeps; the volume that was to be migrated stays
/// as it is, and so does the copy if it has its id. `open` opens the other pool.
pub fn forget(session: &Session, kept: u32, open: &dyn Fn(&str) -> Result<Session>) -> Result {
    for home in session.home.all()? {
        for id in home.list("migrate-", ".json")? {
            let Ok(id) = id.parse() else {
                continue;
            };
            let load = || -> Result<Option<Migration>> {
                let migration = home.load::<Migration>(&file(id))?;
                Ok(migration.filter(|migration| migration.keeps(session, &home, kept)))
            };
            if load()?.is_none() {
                continue;
            }
            let _lock = lock(&home, id)?;
            // Whoever had it locked before may have gone on.
            if let Some(migration) = load()? {
                return give_up(&migration, id, session, &home, open);
            }
        }
    }
    Ok(())
}

fn give_up(
    migration: &Migration,
    id: u32,
    session: &Session,
    home: &Home,
    open: &dyn Fn(&str) -> Result<Session>,
) -> Result {
    if *home == session.home {
        let to = match open(&migration.to_pool) {
            Err(Error::NotFound(_)) => None,
            to => Some(to?),
        };
        migration.check_given_up(session, id, to.as_ref())?;
        if to.is_none() {
            tell(format_args!(
                "pool {} is not active, and volume {} stays in it",
                migration.to_pool, migration.temporary
            ));
        }
        return migration.delete_own(session, id, to.as_ref());
    }
    let from = match &migration.from_pool {
        Some(from) => Some(open(from)?).filter(|from| from.home == *home),
        None => None,
    };
    let Some(from) = from else {
        return Err(Error::NotFound(format!(
            "the pool that volume {id} comes from is not there any more"
        )));
    };
    migration.check_given_up(&from, id, Some(session))?;
    migration.delete_own(&from, id, Some(session))
}
