// SPDX-License-Identifier: GPL-2.0

//! Lists of snapshots that something goes on from the next time.
//!
//! Each list is a file, which is locked by whoever works with it. A snapshot is listed before it is taken for granted, and
//! as long as it is there.

use serde::{
    de::DeserializeOwned,
    Serialize, //
};

use crate::{
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
    session::Session,
};

/// A list of snapshots.
pub trait Anchors: Serialize + DeserializeOwned {
    /// What goes on from them; the names of its files begin with it.
    const OWNER: Owner;

    /// The error of a list that somebody else has locked.
    const BUSY: &str;

    /// The volume that they are snapshots of.
    fn volume(&self) -> u32;

    /// Where the volume's content goes to, for people.
    fn place(&self) -> String;

    /// All of them.
    fn ids(&self) -> Vec<u32>;

    /// Takes one off the list.
    fn remove(&mut self, id: u32);
}

fn prefix<A: Anchors>() -> String {
    format!("{}-", A::OWNER)
}

/// The file of the list `key`.
pub fn file<A: Anchors>(key: &str) -> String {
    format!("{}{key}.json", prefix::<A>())
}

/// Locks the list `key`.
pub fn lock<A: Anchors>(home: &Home, key: &str) -> Result<Lock> {
    home.try_lock(&format!("{}{key}.lock", prefix::<A>()))?
        .ok_or_else(|| Error::Busy(A::BUSY.to_owned()))
}

/// What is on all lists of a kind.
pub fn kept<A: Anchors>(home: &Home) -> Result<Vec<Kept>> {
    let mut found = Vec::new();
    for key in home.list(&prefix::<A>(), ".json")? {
        if let Some(anchors) = home.load::<A>(&file::<A>(&key))? {
            found.extend(anchors.ids().into_iter().map(|id| Kept {
                id,
                volume: anchors.volume(),
                owner: A::OWNER,
                place: anchors.place(),
            }));
        }
    }
    Ok(found)
}

/// Deletes a snapshot, and takes it off the list that has it. A list with nothing on it is removed.
pub fn forget<A: Anchors>(session: &Session, snapshot: u32) -> Result {
    for key in session.home.list(&prefix::<A>(), ".json")? {
        let file = file::<A>(&key);
        let load = || -> Result<Option<A>> {
            let anchors = session.home.load::<A>(&file)?;
            Ok(anchors.filter(|anchors| anchors.ids().contains(&snapshot)))
        };
        if load()?.is_none() {
            continue;
        }
        let _lock = lock::<A>(&session.home, &key)?;
        // Whoever had it locked before may have gone on to another one.
        let Some(mut anchors) = load()? else {
            continue;
        };
        session.delete(snapshot)?;
        anchors.remove(snapshot);
        match anchors.ids().is_empty() {
            true => session.home.remove(&file)?,
            false => session.home.store(&file, &anchors)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct List(u32, Vec<u32>);

    impl Anchors for List {
        const OWNER: Owner = Owner::Backup;
        const BUSY: &str = "somebody has it";

        fn volume(&self) -> u32 {
            self.0
        }

        fn place(&self) -> String {
            "there".to_owned()
        }

        fn ids(&self) -> Vec<u32> {
            self.1.clone()
        }

        fn remove(&mut self, id: u32) {
            self.1.retain(|&other| other != id);
        }
    }

    #[test]
    fn all_lists_of_a_kind_are_found() -> Result {
        let folder = tempfile::tempdir().map_err(Error::io("folder"))?;
        let home = Home::at(folder.path())?;
        home.store(&file::<List>("one"), &List(1, vec![10, 11]))?;
        home.store(&file::<List>("two"), &List(2, vec![20]))?;
        home.store("replicate-one.json", &"none of these")?;
        let found: Vec<_> = kept::<List>(&home)?
            .into_iter()
            .map(|kept| (kept.volume, kept.id))
            .collect();
        assert_eq!(found, [(1, 10), (1, 11), (2, 20)]);
        let _lock = lock::<List>(&home, "one")?;
        assert!(matches!(lock::<List>(&home, "one"), Err(Error::Busy(_))));
        lock::<List>(&home, "two").map(drop)
    }
}
