// SPDX-License-Identifier: GPL-2.0

//! Receiving a volume.
//!
//! Changes go to a volume with an id of thinctl's own, which is a snapshot of the one that the stream starts from, or
//! empty. Only when all of them are there does it get the id that was asked for: as there are no renames, a snapshot of
//! it gets that id, and it is deleted. A file says how far it is, so that what was cut off can be continued.

use serde::{
    Deserialize,
    Serialize, //
};

use crate::{
    copy::{
        Target,
        CHECKPOINT, //
    },
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
    naming::{
        contents,
        find,
        Received, //
    },
    session::Session,
    signals,
    state::StateId,
    stream::{
        Changes,
        Record,
        ResumeToken, //
    },
};

/// A volume that is being received.
#[derive(Clone, Serialize, Deserialize)]
pub struct Partial {
    /// The id that it is to have.
    pub id: u32,
    /// The id that it has meanwhile.
    temporary: u32,
    /// Whether it takes the place of a volume that has this id.
    replaces: bool,
    from: Option<StateId>,
    to: StateId,
    size: u64,
    /// All changes below this offset, in bytes, are stable.
    pub offset: u64,
    /// Whether all changes are there.
    pub complete: bool,
}

impl Partial {
    /// For the sender, to continue from here.
    pub fn token(&self) -> ResumeToken {
        ResumeToken {
            from: self.from,
            to: self.to,
            offset: self.offset,
        }
    }

    /// What is noted of the volume that is to be `id`.
    pub fn load(session: &Session, id: u32) -> Result<Option<Self>> {
        session.home.load(&file(id))
    }

    fn store(&self, session: &Session) -> Result {
        session.home.store(&file(self.id), self)
    }

    /// Gives it up.
    fn discard(&self, session: &Session) -> Result {
        session.delete(self.temporary)?;
        session.home.remove(&file(self.id))
    }
}

fn file(id: u32) -> String {
    format!("partial-{id}.json")
}

/// What has become of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The volume is in the stream's state now.
    Received,
    /// It was already.
    AlreadyThere,
}

/// Receives `changes` as volume `id`. Those that start from a state are applied to a snapshot of volume `base`, or else
/// of volume `id` itself, whose place the result takes. `progress` is told of each piece of data.
pub fn receive(
    session: &Session,
    id: u32,
    base: Option<u32>,
    changes: &mut dyn Changes,
    mut progress: impl FnMut(u64),
) -> Result<Outcome> {
    session.pool.check_writable(&session.dm)?;
    let _lock = lock(session, id)?;
    if let Some(mut partial) = Partial::load(session, id)? {
        if partial.complete {
            finish(session, &mut partial)?;
        }
    }
    let header = changes.header().clone();
    let mut partial = match resumed(session, id, changes)? {
        Some(partial) => partial,
        None => match begin(session, id, base, changes)? {
            Some(partial) => partial,
            None => {
                // Who sends is not to fail.
                while changes.next()?.is_some() {
                    signals::check()?;
                }
                return Ok(Outcome::AlreadyThere);
            }
        },
    };

    let activation = session.activate(partial.temporary, header.size.max(1), false)?;
    let mut target = Target::open(&activation.path(), session.pool.block_size)?;
    let mut unsaved = 0u64;
    let mut done = partial.offset;
    let result = loop {
        match signals::check().and_then(|()| changes.next()) {
            Ok(Some(Record::Data { offset, data })) => {
                let len = data.len() as u64;
                if let Err(e) = target.write(offset, &data) {
                    break Err(e);
                }
                progress(len);
                done = offset.saturating_add(len);
                unsaved = unsaved.saturating_add(len);
            }
            Ok(Some(Record::Discard { offset, len })) => {
                if let Err(e) = target.discard(offset, len) {
                    break Err(e);
                }
                done = offset.saturating_add(len);
            }
            Ok(None) => break Ok(()),
            Err(e) => break Err(e),
        }
        if unsaved >= CHECKPOINT {
            target.flush()?;
            partial.offset = done;
            partial.store(session)?;
            unsaved = 0;
        }
    };
    // What came so far is right, whatever follows.
    target.flush()?;
    partial.offset = done;
    partial.complete = result.is_ok();
    partial.store(session)?;
    drop(target);
    activation.remove()?;
    result?;
    finish(session, &mut partial)?;
    Ok(Outcome::Received)
}

/// What is there already of a stream that continues another one.
fn resumed(session: &Session, id: u32, changes: &dyn Changes) -> Result<Option<Partial>> {
    let header = changes.header();
    let partial = Partial::load(session, id)?;
    if header.start == 0 {
        // It begins anew, and what was there before is of no use.
        if let Some(partial) = partial {
            partial.discard(session)?;
        }
        return Ok(None);
    }
    match partial {
        Some(partial)
            if (partial.from, partial.to, partial.size) == (header.from, header.to, header.size)
                && partial.offset >= header.start =>
        {
            Ok(Some(partial))
        }
        _ => Err(Error::Refused(format!(
            "the stream continues another one from byte {} on, which was not received so far as volume {id}",
            header.start
        ))),
    }
}

/// Makes the volume that changes go to; `None` if volume `id` is in their state already.
fn begin(
    session: &Session,
    id: u32,
    base: Option<u32>,
    changes: &dyn Changes,
) -> Result<Option<Partial>> {
    let header = changes.header();
    let snap = session.metadata_snap()?;
    let view = snap.view()?;
    let there = find(session, &view, id)?;
    if there.is_some_and(|now| now.is(header.to)) {
        return Ok(None);
    }
    let from = base.unwrap_or(id);
    match header.from {
        Some(state) => {
            let now = match (base, there) {
                (Some(_), Some(_)) => return Err(session.exists_already(id)),
                (Some(base), None) => contents(session, &view, base)?,
                (None, Some(now)) => now,
                (None, None) => {
                    return Err(Error::Refused(format!(
                        "the stream has what changed since state {state}, and there is no volume {id} in pool {}",
                        session.pool.name
                    )))
                }
            };
            if !now.frozen || ![now.state, now.digest].contains(&state) {
                return Err(Error::Refused(format!(
                    "volume {from} of pool {} is not in the state that the stream starts from: it is in {}, and the \
                     stream starts from {state}",
                    session.pool.name, now.state
                )));
            }
        }
        None if base.is_some() => {
            return Err(Error::Refused(
                "the stream has a whole volume, and needs no base".to_owned(),
            ))
        }
        None if there.is_some() => return Err(session.exists_already(id)),
        None => {}
    }
    snap.release()?;

    let temporary = match header.from {
        Some(_) => session.snapshot(from)?,
        None => session.new_volume()?,
    };
    let partial = Partial {
        id,
        temporary,
        replaces: header.from.is_some() && base.is_none(),
        from: header.from,
        to: header.to,
        size: header.size,
        offset: 0,
        complete: false,
    };
    session.keep(temporary, || partial.store(session))?;
    Ok(Some(partial))
}

/// Gives a volume that is complete its id. It can be cut off anywhere, and be called again.
fn finish(session: &Session, partial: &mut Partial) -> Result {
    let Partial { id, temporary, .. } = *partial;
    let snap = session.metadata_snap()?;
    let view = snap.view()?;
    let new = find(session, &view, temporary)?;
    let old = find(session, &view, id)?;
    snap.release()?;
    if let Some(new) = new {
        // They are alike if it has got its id already.
        if old.is_none_or(|old| old.digest != new.digest) {
            if old.is_some() {
                if !partial.replaces {
                    return Err(session.exists_already(id));
                }
                session.delete(id)?;
            }
            session.snapshot_as(id, temporary)?;
        }
        Received::note(&session.home, id, partial.to, new.digest)?;
        session.delete(temporary)?;
    }
    session.home.remove(&file(id))
}

/// Gives up what was received so far as volume `id`.
pub fn abandon(session: &Session, id: u32) -> Result {
    let _lock = lock(session, id)?;
    match Partial::load(session, id)? {
        Some(partial) => partial.discard(session),
        None => Err(Error::NotFound(format!(
            "no volume {id} is being received in pool {}",
            session.pool.name
        ))),
    }
}

fn lock(session: &Session, id: u32) -> Result<Lock> {
    session
        .home
        .try_lock(&format!("partial-{id}.lock"))?
        .ok_or_else(|| Error::Busy(format!("another thinctl is receiving volume {id}")))
}

/// Finishes what is complete, and was cut off.
pub fn recover(session: &Session) -> Result {
    for id in session.home.list("partial-", ".json")? {
        let Ok(id) = id.parse() else {
            continue;
        };
        let Some(_lock) = session.home.try_lock(&format!("partial-{id}.lock"))? else {
            continue;
        };
        if let Some(mut partial) = Partial::load(session, id)? {
            if partial.complete {
                finish(session, &mut partial)?;
            }
        }
    }
    Ok(())
}

/// What has come so far of streams that were cut off.
pub fn kept(home: &Home) -> Result<Vec<Kept>> {
    let mut found = Vec::new();
    for id in home.list("partial-", ".json")? {
        if let Some(partial) = home.load::<Partial>(&format!("partial-{id}.json"))? {
            found.push(Kept {
                id: partial.temporary,
                volume: partial.id,
                owner: Owner::Receive,
                place: format!("a stream, up to byte {}", partial.offset),
            });
        }
    }
    Ok(found)
}
