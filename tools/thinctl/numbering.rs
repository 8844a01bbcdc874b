// SPDX-License-Identifier: GPL-2.0

//! That lvm2 and thinctl do not give one id to two volumes.
//!
//! lvm2 gives a new volume the highest id in its books plus one, and does not see what thinctl has made. So thinctl's ids
//! are of the upper half, at random, and lvm2's are counted from 1 on. They would meet after 8 Mi volumes that lvm2 has made.
//! Whoever wants to make a snapshot in a pool of lvm2 looks how far lvm2 has come, and is refused when it has come half way;
//! what thinctl keeps may stay there for long, and 4 Mi volumes are left until then. A volume of the upper half that thinctl
//! knows nothing of may be lvm2's, and then lvm2 goes on from there.
//!
//! Nobody makes millions of volumes between the look and the snapshot, and the pool refuses a snapshot whose id is in
//! use. So it does not matter that others go on in between.

use std::collections::BTreeSet;

use crate::{
    error::{
        Error,
        Result, //
    },
    journal::Journal,
    kept,
    lvm2::{
        self,
        FIRST_OWN_ID, //
    },
    session::Session,
};

/// Where lvm2 has come half way.
const HALF_WAY: u32 = FIRST_OWN_ID / 2;

/// How often a volume that nobody knows of is looked at: other processes make and delete theirs meanwhile.
const LOOKS: u32 = 3;

/// Gives an error if lvm2 manages the pool, and may come to the ids that thinctl uses.
pub fn check(session: &Session) -> Result {
    if !session.pool.is_of_lvm2() {
        return Ok(());
    }
    let mut unknown: Option<BTreeSet<u32>> = None;
    for _ in 0..LOOKS {
        // What is made later is noted after the look at the latest, and what is deleted meanwhile was noted before.
        let mut known = notes(session)?;
        let found = upper_half(session)?;
        known.extend(notes(session)?);
        let found: BTreeSet<u32> = found.difference(&known).copied().collect();
        let still = match unknown {
            None => found,
            Some(before) => before.intersection(&found).copied().collect(),
        };
        if still.is_empty() {
            return Ok(());
        }
        unknown = Some(still);
    }
    match unknown.and_then(|ids| ids.first().copied()) {
        Some(id) => Err(stranger(session, id)),
        None => Ok(()),
    }
}

/// The volumes with ids of thinctl's; an error if lvm2 has come half way to them.
fn upper_half(session: &Session) -> Result<BTreeSet<u32>> {
    let (mut highest, mut found) = (0, BTreeSet::new());
    session.glance(|view| {
        view.for_devices(|id, _| {
            let id = u32::try_from(id.key()).unwrap_or(u32::MAX);
            if lvm2::is_own(id) {
                found.insert(id);
            } else {
                highest = highest.max(id);
            }
            Ok(())
        })?;
        Ok(())
    })?;
    if highest < HALF_WAY {
        return Ok(found);
    }
    Err(Error::Refused(format!(
        "pool {} has a volume {highest}, and lvm2 counts on from there to the ids that thinctl uses, from {FIRST_OWN_ID} on: \
         nothing is kept in this pool any more",
        session.pool.name
    )))
}

/// The volumes that thinctl has made for itself.
fn notes(session: &Session) -> Result<BTreeSet<u32>> {
    // What a process keeps for later ones goes from its journal to the lists.
    let mut found: BTreeSet<u32> = Journal::volumes(&session.home)?.into_iter().collect();
    found.extend(kept::all(session)?.into_iter().map(|kept| kept.id));
    Ok(found)
}

/// The error of a volume that may be lvm2's.
fn stranger(session: &Session, id: u32) -> Error {
    let pool = &session.pool.name;
    let (group, _) = lvm2::names(pool);
    Error::Refused(format!(
        "pool {pool} has a volume {id}, and thinctl, whose ids are those from {FIRST_OWN_ID} on, does not know of it. If \
         `lvs -a -o lv_name,thin_id {group}` shows it, lvm2 counts on from there, and nothing can be kept in this pool; \
         if not, it was kept for another --home, or for one that is lost: `dmsetup message {pool} 0 'delete {id}'` deletes it"
    ))
}
