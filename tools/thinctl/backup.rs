// SPDX-License-Identifier: GPL-2.0

//! Backing up a volume that may be in use.
//!
//! The snapshot of the last generation is kept in the pool, so that the next one has only what has changed since.

use std::path::Path;

use serde::{
    Deserialize,
    Serialize, //
};

use thin_metadata::format::BlockTime;

use crate::{
    anchors::{
        self,
        Anchors, //
    },
    error::{
        Error,
        Result, //
    },
    home::{
        self,
        Home, //
    },
    identity::Identity,
    kept::{
        Kept,
        Owner, //
    },
    naming::{
        self,
        device_id,
        is_unchanged,
        Contents, //
    },
    numbering,
    pool::ActiveVolume,
    repository::{
        Generation,
        Locked,
        Source, //
    },
    send::{
        plan,
        send,
        Request, //
    },
    session::Session,
    state::StateId,
};

/// What was kept of a volume for one name in one repository.
#[derive(Serialize, Deserialize)]
struct Anchor {
    /// The volume.
    volume: u32,
    /// Its name in the repository.
    name: String,
    /// Where the repository was.
    place: String,
    /// The snapshot of the last generation, and one that was about to become it.
    snapshots: Vec<u32>,
}

/// How to make a backup.
pub struct Options<'a> {
    /// The folder of the repository.
    pub repository: &'a Path,
    /// The volume's name in the repository.
    pub name: &'a str,
    /// Whether to make a full one in any case.
    pub full: bool,
    /// Whether the backups of this name may be those of another volume, which this one takes the place of.
    pub adopt: bool,
    /// How hard to compress.
    pub level: i32,
}

/// Adds the next generation of volume `id` to a repository; `None` if nothing has changed.
///
/// A volume other than that of the last generation is refused, as is a chain that cannot be restored. Whether its data are
/// right is not looked at: that takes as long as a restore.
///
/// The metadata do not tell the size of a volume. A full generation is as large as the volume if that is active, or else as
/// the last one, but not smaller than what is mapped; another one is not smaller than the one before. So nothing is left
/// out that would be seen in a volume that becomes larger again, and what is restored may be larger than the volume.
///
/// `progress` is told of how much there is to do, and of each piece of data.
pub fn backup(
    session: &Session,
    id: u32,
    repository: &Locked,
    options: &Options<'_>,
    mut progress: impl FnMut(Option<u64>, u64),
) -> Result<Option<Generation>> {
    let Options {
        name, full, level, ..
    } = *options;
    numbering::check(session)?;
    let place = options
        .repository
        .canonicalize()
        .map_err(Error::io(options.repository.display()))?;
    // A repository may be moved, but it keeps its id; and another volume of the pool may take the place of this one, as what
    // lvm2 has merged into it does.
    let key = home::key(format!("{}/{name}", repository.id()).as_bytes());
    let _lock = anchors::lock::<Anchor>(&session.home, &key)?;
    let file = anchors::file::<Anchor>(&key);
    let before = session.home.load::<Anchor>(&file)?;
    let mut kept = Anchor {
        volume: id,
        name: name.to_owned(),
        place: place.display().to_string(),
        snapshots: before.map_or_else(Vec::new, |before| before.snapshots),
    };
    let source = source(session, id)?;
    let last = match full {
        // It begins anew, whatever has become of what is there.
        true => repository.last_readable(name)?,
        false => repository
            .last_of_chain(name)
            .map_err(|e| begin_anew(options, e))?,
    };
    // Those of generations that did not come about are of no use.
    let found = match &last {
        Some(last) => find(session, &kept, last.header.to)?,
        None => None,
    };
    let current = found.map(|(id, _)| id);
    if !options.adopt {
        check_source(session, repository, options, &source, current)?;
    }
    for &other in kept.snapshots.iter().filter(|&&id| Some(id) != current) {
        session.delete(other)?;
    }
    kept.snapshots = current.into_iter().collect();
    let base = current.filter(|_| !full);

    if let Some(base) = base {
        if is_unchanged(session, id, base)? {
            return Ok(None);
        }
    }
    let snapshot = session.snapshot(id)?;
    // Until the generation is there, the one before may be needed again.
    kept.snapshots.push(snapshot);
    session.keep(snapshot, || session.home.store(&file, &kept))?;

    let volume = session.active_size(id)?;
    let last_size = last.map_or(0, |last| last.header.size);
    let full = Request {
        id: snapshot,
        from: None,
        size: volume.unwrap_or(last_size),
        is_old_size: volume.is_none(),
        resume: None,
    };
    let next = match (base, found) {
        (Some(_), Some((_, contents))) => {
            let next = plan(
                session,
                &Request {
                    from: base,
                    // What is based on a generation is not smaller.
                    size: last_size.max(full.size),
                    ..full
                },
            )?;
            let mapped = contents.end.saturating_mul(session.pool.block_size);
            // Where the last block of a volume was cut off that has become larger, there is something without a change.
            Some(next).filter(|next| next.header.size <= last_size || mapped <= last_size)
        }
        _ => None,
    };
    let plan = match next {
        Some(next) => next,
        None => plan(session, &full)?,
    };
    progress(Some(plan.header.data), 0);
    let generation = repository.add(name, Some(source), |output| {
        send(session, plan, output, level, |n| progress(None, n))?;
        Ok(())
    })?;

    // As long as it is there, it is listed.
    if let Some(before) = current {
        session.delete(before)?;
    }
    kept.snapshots = vec![snapshot];
    session.home.store(&file, &kept)?;
    Ok(Some(generation))
}

/// What is known of volume `id`, so that it is not taken for another one later.
fn source(session: &Session, id: u32) -> Result<Source> {
    let device = session
        .active(id)?
        .into_iter()
        .find(ActiveVolume::is_of_lvm2);
    Ok(Source {
        pool: session.pool.name.clone(),
        identity: Identity::name(&session.home)?,
        pool_uuid: session.pool.uuid.clone(),
        volume: id,
        created: session.creation_time(id)?,
        uuid: device.and_then(|volume| volume.info.uuid),
    })
}

/// Gives an error if the backups of this name are those of another volume: they would count as older ones of this volume,
/// and pruning would remove them.
fn check_source(
    session: &Session,
    repository: &Locked,
    options: &Options<'_>,
    source: &Source,
    current: Option<u32>,
) -> Result {
    let Some(known) = repository.source(options.name)? else {
        return Ok(());
    };
    if known.is(source)
        && (!known.is_made_anew(source) || goes_on(session, source.volume, known.created, current)?)
    {
        return Ok(());
    }
    let Options {
        name,
        repository: place,
        ..
    } = options;
    let (known, source) = match known.to_string() == source.to_string() {
        // Nothing but --home or the pool is another one.
        true => (
            known.to_string(),
            format!(
                "{source} as it is known now: the volume or the pool was made anew, or --home is another one or was lost"
            ),
        ),
        false => (known.to_string(), source.to_string()),
    };
    Err(Error::Refused(format!(
        "the backups of {name} in {} are those of {known}, and this is {source}. Choose another --name; or if this volume \
         takes the place of that one, as one that was restored or has moved does, --adopt goes on with its backups",
        place.display(),
    )))
}

/// Whether volume `id` has what only the volume had that was backed up last, and made at `created`: one that is received
/// again and again, or is a snapshot that is taken anew under the same id, takes the place of what it was. `snapshot` is that of
/// the last generation: others may be of another volume, whose backup did not come about.
///
/// Another volume may have blocks of what both are snapshots of, so those count only if there are no others.
fn goes_on(
    session: &Session,
    id: u32,
    created: Option<u32>,
    snapshot: Option<u32>,
) -> Result<bool> {
    let Some(snapshot) = snapshot else {
        return Ok(false);
    };
    let snap = session.metadata_snap()?;
    let view = snap.view()?;
    let now = device_id(id)?;
    let before = device_id(snapshot)?;
    let mut goes_on = false;
    if view.device(before)?.is_some() && view.device(now)?.is_some() {
        let is_own = |mapping: BlockTime| created.is_some_and(|created| mapping.time() >= created);
        let [mut has_own, mut shares_own, mut shares_other] = [false; 3];
        view.merge(before, now, |_, then, now| {
            if let Some(then) = then {
                let is_shared = now.is_some_and(|now| now.block() == then.block());
                match is_own(then) {
                    true => (has_own, shares_own) = (true, shares_own || is_shared),
                    false => shares_other |= is_shared,
                }
            }
            Ok(())
        })?;
        goes_on = if has_own { shares_own } else { shares_other };
    }
    snap.release()?;
    Ok(goes_on)
}

/// The error of backups that nothing can be added to but a full one.
fn begin_anew(options: &Options<'_>, e: Error) -> Error {
    let name = options.name;
    match e {
        Error::Damaged(what) => Error::Damaged(format!(
            "the last backup of {name} in {place} cannot be restored any more: {what}. Nothing was backed up. `thinctl \
             backup --full` begins anew and keeps what is there; `thinctl verify {place} {name}` tells what of it can still \
             be restored",
            place = options.repository.display(),
        )),
        e => e,
    }
}

/// The snapshot that was kept of a state.
fn find(session: &Session, kept: &Anchor, state: StateId) -> Result<Option<(u32, Contents)>> {
    let snap = session.metadata_snap()?;
    let view = snap.view()?;
    for &snapshot in &kept.snapshots {
        // Somebody may have deleted it.
        if let Some(found) = naming::find(session, &view, snapshot)? {
            if found.is(state) {
                return Ok(Some((snapshot, found)));
            }
        }
    }
    Ok(None)
}

impl Anchors for Anchor {
    const OWNER: Owner = Owner::Backup;
    const BUSY: &str = "another thinctl is making this backup";

    fn volume(&self) -> u32 {
        self.volume
    }

    fn place(&self) -> String {
        format!("{} in {}", self.name, self.place)
    }

    fn ids(&self) -> Vec<u32> {
        self.snapshots.clone()
    }

    fn remove(&mut self, id: u32) {
        self.snapshots.retain(|&other| other != id);
    }
}

/// The snapshots that backups go on from.
pub fn kept(home: &Home) -> Result<Vec<Kept>> {
    anchors::kept::<Anchor>(home)
}

/// Deletes one of them. The next backup is a full one then.
pub fn forget(session: &Session, snapshot: u32) -> Result {
    anchors::forget::<Anchor>(session, snapshot)
}
