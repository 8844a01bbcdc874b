// SPDX-License-Identifier: GPL-2.0

//! Receiving a volume.
//!
//! Changes go to a volume with an id of thinctl's own, which is a snapshot of the one that the stream starts from, or
//! empty. Only when all of them are there does it get the id that was asked for: as there are no renames, a snapshot of
//! it gets that id, and it is deleted. A file says how far it is, so that what was cut off can be continued.
//!
//! A volume whose place another one takes may be used meanwhile, as it may be long until a stream is complete. It is
//! looked at before data are taken, and again right before it is deleted: it must be inactive, and as it was when the
//! stream began. Only receiving it again puts it in its place, no other command.

use std::cmp::Ordering;

use serde::{
    Deserialize,
    Serialize, //
};

use crate::{
    copy::{
        Target,
        CHECKPOINT, //
    },
    device::Device,
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
    lvm2,
    naming::{
        contents,
        device_id,
        find,
        Contents,
        Received, //
    },
    room::Room,
    session::Session,
    signals,
    state::StateId,
    stream::{
        Changes,
        Header,
        Record,
        ResumeToken, //
    },
    unchanged::{
        changed,
        delete_with_digest,
        has_part_of, //
    },
};

/// A volume that is being received.
#[derive(Clone, Serialize, Deserialize)]
pub struct Partial {
    /// The id that it is to have.
    pub id: u32,
    /// The id that it has meanwhile.
    temporary: u32,
    /// The digest of the volume that has this id, and whose place it takes; `None` if there is to be none.
    replaces: Option<StateId>,
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

    /// Whether a stream goes on with it.
    fn is_continued_by(&self, stream: &Header) -> bool {
        (self.from, self.to, self.size) == (stream.from, stream.to, stream.size)
            && self.offset >= stream.start
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

/// How to receive.
#[derive(Default)]
pub struct Options {
    /// Changes that start from a state are applied to a snapshot of this volume, or else of the volume itself that is
    /// received, whose place the result takes.
    pub base: Option<u32>,
    /// Whether to try it also if there seems to be no room for it.
    pub anyway: bool,
}

/// Receives `changes` as volume `id`. `progress` is told of each piece of data.
pub fn receive(
    session: &Session,
    id: u32,
    options: &Options,
    changes: &mut dyn Changes,
    mut progress: impl FnMut(u64),
) -> Result<Outcome> {
    lvm2::check_makes(&session.pool, id)?;
    session.pool.check_writable(&session.dm)?;
    let _lock = lock(session, id)?;
    let header = changes.header().clone();
    let mut known = Partial::load(session, id)?;
    if let Some(complete) = known.take_if(|partial| partial.complete) {
        // Nobody has asked for what came before, unless the stream goes on from it.
        if complete.to != header.to && Some(complete.to) != header.from {
            return Err(Error::Refused(format!(
                "another stream came as volume {id} before, and is not in place yet: receive that again, or `thinctl \
                 abandon {pool} {id}` gives it up",
                pool = session.pool.name
            )));
        }
        if finish(session, &complete)? && complete.to == header.to {
            skip(changes)?;
            return Ok(Outcome::Received);
        }
    }
    let room = Room::new(session, options.anyway);
    let Some(mut partial) = begin(session, id, options.base, &room, changes, known)? else {
        skip(changes)?;
        return Ok(Outcome::AlreadyThere);
    };

    let seen = session.pool.size_to_write(header.size);
    let activation = session.activate(partial.temporary, seen, false)?;
    let mut target = Target::open(
        activation.open(Device::open_for_writing)?,
        &session.pool,
        None,
        room,
    )?;
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
    if let Err(e) = target.flush() {
        // What failed first tells more.
        return result.and(Err(e));
    }
    partial.offset = done;
    partial.complete = result.is_ok();
    partial.store(session)?;
    drop(target);
    activation.remove()?;
    result?;
    match finish(session, &partial)? {
        true => Ok(Outcome::Received),
        false => Err(Error::NotFound(format!(
            "what was received as volume {id} was deleted by somebody else; begin anew"
        ))),
    }
}

/// Takes what is of no use, so that who sends it does not fail.
pub fn skip(changes: &mut dyn Changes) -> Result {
    while changes.next()?.is_some() {
        signals::check()?;
    }
    Ok(())
}

/// Finds or makes the volume that changes go to; `None` if volume `id` is in their state already. `known` is what came of
/// a stream before.
fn begin(
    session: &Session,
    id: u32,
    base: Option<u32>,
    room: &Room,
    changes: &dyn Changes,
    known: Option<Partial>,
) -> Result<Option<Partial>> {
    let header = changes.header();
    let snap = session.metadata_snap()?;
    let view = snap.view()?;
    let there = find(session, &view, id)?;
    let is_there = match there {
        Some(now) => now.is_named(session, header.to)?,
        None => false,
    };
    if is_there {
        snap.release()?;
        if let Some(known) = known.filter(|known| known.to == header.to) {
            known.discard(session)?;
        }
        return Ok(None);
    }
    session.pool.check_size(header.size)?;
    room.check(header.data)?;
    if header.start > 0 {
        let known = match known {
            Some(known) if known.is_continued_by(header) => known,
            _ => {
                return Err(Error::Refused(format!(
                    "the stream continues another one from byte {} on, which was not received so far as volume {id}",
                    header.start
                )))
            }
        };
        if find(session, &view, known.temporary)?.is_none() {
            return Err(Error::NotFound(format!(
                "what was received so far as volume {id} is not there any more; begin anew"
            )));
        }
        if Target::is_spoilt_when_cut_off(&session.pool) {
            return Err(Error::Refused(format!(
                "pool {} does not zero its blocks, and what was cut off may show what they held before; begin anew",
                session.pool.name
            )));
        }
        if base.is_some() && known.replaces.is_some() {
            return Err(session.exists_already(id));
        }
        check_place(session, &known, there)?;
        return Ok(Some(known));
    }

    let from = base.unwrap_or(id);
    let from_digest = match header.from {
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
            if !now.is_named(session, state)? {
                return Err(Error::Refused(format!(
                    "volume {from} of pool {} is not in the state that the stream starts from: it is in {}, and the \
                     stream starts from {state}",
                    session.pool.name, now.state
                )));
            }
            Some(now.digest)
        }
        None if base.is_some() => {
            return Err(Error::Refused(
                "the stream has a whole volume, and needs no base".to_owned(),
            ))
        }
        None if there.is_some() => return Err(session.exists_already(id)),
        None => None,
    };
    snap.release()?;
    let replaces = from_digest.filter(|_| base.is_none());
    if replaces.is_some() {
        // It could not be replaced in the end.
        session.check_inactive(id)?;
    }

    // The stream begins anew, and what came before is of no use.
    if let Some(known) = known {
        known.discard(session)?;
    }
    let temporary = match from_digest {
        Some(digest) => snapshot_of(session, from, digest)?,
        None => session.new_volume()?,
    };
    let partial = Partial {
        id,
        temporary,
        replaces,
        from: header.from,
        to: header.to,
        size: header.size,
        offset: 0,
        complete: false,
    };
    session.keep(temporary, || partial.store(session))?;
    Ok(Some(partial))
}

/// Takes a snapshot of volume `id`, which was frozen and had this digest when it was looked at.
fn snapshot_of(session: &Session, id: u32, digest: StateId) -> Result<u32> {
    let snapshot = session.snapshot(id)?;
    let snap = session.metadata_snap()?;
    let now = contents(session, &snap.view()?, snapshot)?;
    snap.release()?;
    if now.digest != digest {
        session.delete(snapshot)?;
        return Err(changed(
            session,
            id,
            "it was looked at",
            "nothing was received",
        ));
    }
    Ok(snapshot)
}

/// Gives an error if a volume that is being received cannot be put in its place, as `there` is another one.
fn check_place(session: &Session, partial: &Partial, there: Option<Contents>) -> Result {
    match (there, partial.replaces) {
        (None, _) => Ok(()),
        (Some(_), None) => Err(Error::Refused(format!(
            "there is a volume {id} in pool {pool} now; what came is kept: `thinctl abandon {pool} {id}` gives it up",
            id = partial.id,
            pool = session.pool.name
        ))),
        (Some(now), Some(digest)) => {
            session.check_inactive(partial.id)?;
            if now.frozen && now.digest == digest {
                Ok(())
            } else {
                Err(used(session, partial))
            }
        }
    }
}

/// The error of a volume that was to be replaced, and was written to.
fn used(session: &Session, partial: &Partial) -> Error {
    let Partial { id, .. } = *partial;
    let pool = &session.pool.name;
    let what_now = format!(
        "what came is kept, and does not fit any more: `thinctl abandon {pool} {id}` gives it up, and leaves the volume \
         as it is"
    );
    changed(session, id, "the stream began", &what_now)
}

/// Who has the id of a volume whose place another one takes.
enum Place {
    /// The volume, or what came in its place.
    Taken,
    /// Nobody: the volume was deleted, and nothing else has its content.
    Free,
    /// A volume that was made since.
    Another,
}

/// Who has the id that what came is to have; what came takes the place of a volume.
fn place(session: &Session, partial: &Partial) -> Result<Place> {
    session.glance(|view| {
        let device = |id| Ok::<_, Error>(view.device(device_id(id)?)?);
        let (Some(there), new) = (device(partial.id)?, device(partial.temporary)?) else {
            return Ok(Place::Free);
        };
        let Some(new) = new else {
            return Ok(Place::Taken);
        };
        // A snapshot was taken before the deletion. The volume is older than that, and what came in its place is the last
        // snapshot of what came, if not one that was made at the same time.
        let (made, last) = (there.creation_time.get(), new.snapshotted_time.get());
        let (source, mapped) = (partial.temporary, new.mapped_blocks.get());
        let is_the_one = match made.cmp(&last) {
            Ordering::Less => true,
            Ordering::Equal => has_part_of(view, source, partial.id, mapped)?,
            Ordering::Greater => false,
        };
        Ok(if is_the_one {
            Place::Taken
        } else {
            Place::Another
        })
    })
}

/// The error of a volume that is not there any more, and of whose id there is another one.
fn another(session: &Session, partial: &Partial) -> Error {
    let Partial { id, temporary, .. } = *partial;
    let pool = &session.pool.name;
    Error::Refused(format!(
        "the volume {id} of pool {pool} that is to be replaced is gone, and there is another one since; nothing but volume \
         {temporary} has what the one contained and what came. Once the other one is away (`thinctl snapshot {pool} {id} \
         ANOTHER-ID` keeps it), receive again, or `thinctl abandon {pool} {id}`, puts {temporary} in place"
    ))
}

/// Gives a volume that is complete its id; says whether that was still to be done. It can be cut off anywhere, and be
/// called again.
fn finish(session: &Session, partial: &Partial) -> Result<bool> {
    let Partial { id, temporary, .. } = *partial;
    let snap = session.metadata_snap()?;
    let view = snap.view()?;
    let new = find(session, &view, temporary)?;
    let old = find(session, &view, id)?;
    snap.release()?;
    if let Some(new) = new {
        // They are alike if it has got its id already.
        if old.is_none_or(|old| old.digest != new.digest) {
            let replaces = partial.complete && partial.replaces.is_some();
            if old.is_some() && replaces && matches!(place(session, partial)?, Place::Another) {
                return Err(another(session, partial));
            }
            check_place(session, partial, old)?;
            if let (Some(_), Some(digest)) = (old, partial.replaces) {
                if !delete_with_digest(session, digest, id)? {
                    return Err(used(session, partial));
                }
            }
            session.snapshot_as(id, temporary)?;
        }
        Received::note(&session.home, id, partial.to, new.digest)?;
        session.delete(temporary)?;
    }
    session.home.remove(&file(id))?;
    Ok(new.is_some())
}

/// Gives up what was received so far as volume `id`.
pub fn abandon(session: &Session, id: u32) -> Result {
    let _lock = lock(session, id)?;
    match Partial::load(session, id)? {
        Some(partial) if partial.complete && partial.replaces.is_some() => {
            match place(session, &partial)? {
                Place::Taken => partial.discard(session),
                Place::Free => finish(session, &partial).map(drop),
                Place::Another => Err(another(session, &partial)),
            }
        }
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
