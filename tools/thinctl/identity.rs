// SPDX-License-Identifier: GPL-2.0

//! Which pool it is that something is remembered of.
//!
//! Pools are found by their names, or by the UUIDs of their devices. One that was made anew, or whose metadata were put
//! back to an earlier state, is another pool under an old name: what is remembered of the old one would be taken for
//! granted, and mappings come again with another content. The time and the transaction id of a pool never go back, so
//! they tell.

use serde::{
    Deserialize,
    Serialize, //
};

use crate::{
    error::{
        Error,
        Result, //
    },
    home::Home,
    pool::{
        Pool,
        Stamp, //
    },
    state, //
};

/// What is remembered of a pool itself.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Identity {
    /// A random name, which no other pool has.
    pool: String,
    /// The highest time that was seen.
    time: u32,
    /// The highest transaction id that was seen.
    transaction: u64,
}

const FILE: &str = "pool.json";

impl Identity {
    /// A name for the pool that no other pool has, and that stays.
    pub fn name(home: &Home) -> Result<String> {
        match home.load::<Self>(FILE)? {
            Some(identity) => Ok(identity.pool),
            None => Self::update(home, |_| {}),
        }
    }

    /// Gives an error if the pool is not the one that `home` is of.
    pub fn check(home: &Home, pool: &Pool) -> Result {
        // It must be known what there was before it is looked what there is.
        match home.load::<Self>(FILE)? {
            Some(identity) => identity.compare(home, &pool.name, pool.stamp()?),
            None => Ok(()),
        }
    }

    fn compare(&self, home: &Home, name: &str, now: Stamp) -> Result {
        if now.time >= self.time && now.transaction >= self.transaction {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "pool {name} is not what it was: its time was {} and its transaction id {}, and they are {} and {} now. If it \
             was made anew or put back to an earlier state, remove {}: replications begin anew then, and backups if they --adopt \
             what is there",
            self.time,
            self.transaction,
            now.time,
            now.transaction,
            home.path("").display()
        )))
    }

    /// Remembers how far the pool is.
    pub fn note(home: &Home, now: Stamp) -> Result {
        match home.load::<Self>(FILE)? {
            Some(known) if known.time >= now.time && known.transaction >= now.transaction => Ok(()),
            _ => Self::update(home, |identity| {
                identity.time = identity.time.max(now.time);
                identity.transaction = identity.transaction.max(now.transaction);
            })
            .map(drop),
        }
    }

    fn update(home: &Home, change: impl FnOnce(&mut Self)) -> Result<String> {
        home.update(FILE, |identity: &mut Self| {
            if identity.pool.is_empty() {
                identity.pool = state::random_hex(16)?;
            }
            change(identity);
            Ok(identity.pool.clone())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_go_back() -> Result {
        let folder = tempfile::tempdir().map_err(Error::io("folder"))?;
        let home = Home::at(folder.path())?;
        let name = Identity::name(&home)?;
        let at = |time, transaction| Stamp { time, transaction };
        let check = |now| {
            let known: Identity = home.load(FILE)?.unwrap_or_default();
            known.compare(&home, "pool", now)
        };
        check(at(0, 0))?;
        Identity::note(&home, at(5, 2))?;
        // Who looked earlier may come later.
        Identity::note(&home, at(4, 2))?;
        check(at(5, 2))?;
        check(at(6, 9))?;
        for back in [at(4, 2), at(5, 1), at(9, 1), at(0, 0)] {
            match check(back) {
                Err(Error::Refused(why)) => {
                    assert!(why.contains(&folder.path().display().to_string()), "{why}");
                }
                result => panic!("{back:?}: {result:?}"),
            }
        }
        assert_eq!(Identity::name(&home)?, name);
        Ok(())
    }
}
