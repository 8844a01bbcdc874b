// SPDX-License-Identifier: GPL-2.0

//! Which volumes of a pool are thinctl's own, and what for.

use std::fmt;

use serde::Serialize;

use crate::{
    backup,
    error::{
        Error,
        Result, //
    },
    merge, migration,
    naming::device_id,
    receive, replicate,
    session::Session,
};

/// What keeps a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The next backup goes on from it.
    Backup,
    /// The next turn of a replication goes on from it.
    Replicate,
    /// It is what has come of a stream so far.
    Receive,
    /// A migration that is not finished needs it.
    Migrate,
    /// A merge that is not finished reads it.
    Merge,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Backup => "backup",
            Self::Replicate => "replicate",
            Self::Receive => "receive",
            Self::Migrate => "migrate",
            Self::Merge => "merge",
        })
    }
}

/// A volume that thinctl keeps for itself.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    /// Its id.
    pub id: u32,
    /// The volume that it is a snapshot of, or is to become.
    pub volume: u32,
    /// What keeps it.
    pub owner: Owner,
    /// Where the volume's content goes to or comes from, for people.
    pub place: String,
}

/// What thinctl keeps in a pool, and whether each is there: somebody may have deleted it.
pub fn list(session: &Session) -> Result<Vec<(Kept, bool)>> {
    let all = all(session)?;
    let metadata = session.metadata()?;
    let view = metadata.view()?;
    let mut found = Vec::new();
    for kept in all {
        let is_there = view.device(device_id(kept.id)?)?.is_some();
        found.push((kept, is_there));
    }
    session.release(metadata)?;
    Ok(found)
}

/// As [`list`], without a look into the pool.
pub fn all(session: &Session) -> Result<Vec<Kept>> {
    let mut all = backup::kept(&session.home)?;
    all.extend(replicate::kept(&session.home)?);
    all.extend(receive::kept(&session.home)?);
    all.extend(migration::kept(session)?);
    all.extend(merge::kept(&session.home)?);
    Ok(all)
}

/// Deletes a snapshot that a backup or a replication goes on from; the next one begins with the whole volume. Or gives up
/// a migration or a merge that keeps this volume; `open` opens another pool.
pub fn forget(session: &Session, id: u32, open: &dyn Fn(&str) -> Result<Session>) -> Result {
    let Some(kept) = all(session)?.into_iter().find(|kept| kept.id == id) else {
        return Err(Error::NotFound(format!(
            "volume {id} of pool {} is none that thinctl keeps",
            session.pool.name
        )));
    };
    let volume = kept.volume;
    match kept.owner {
        Owner::Backup => backup::forget(session, id),
        Owner::Replicate => replicate::forget(session, id),
        Owner::Receive => Err(Error::Refused(format!(
            "volume {volume} is being received: `thinctl abandon` gives it up"
        ))),
        Owner::Migrate => migration::forget(session, id, open),
        Owner::Merge => merge::forget(session, id),
    }
}
