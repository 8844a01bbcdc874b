// SPDX-License-Identifier: GPL-2.0

//! The numbers by which volumes are known.
//!
//! An id has 24 bits, and whatever has one is found by it. The upper half is thinctl's own: it takes ids of its choice
//! there for what it makes for itself, notes them before it does, and deletes what it has noted if it is killed. So nothing
//! is made there with an id of somebody else's choice.

use crate::{
    error::{
        Error,
        Result, //
    },
    lvm2::{
        is_own,
        FIRST_OWN_ID, //
    },
};

/// The highest id.
pub const LAST: u32 = (1 << 24) - 1;

/// The id that is named by a text.
///
/// As all of these, it can be given to clap.
pub fn parse(text: &str) -> std::result::Result<u32, String> {
    match text.parse() {
        Ok(id) if id <= LAST => Ok(id),
        _ => Err(format!("an id is a number from 0 to {LAST}")),
    }
}

/// The id of a volume that is to be made.
pub fn parse_new(text: &str) -> std::result::Result<u32, String> {
    parse(text)
        .ok()
        .filter(|id| !is_own(*id))
        .ok_or_else(|| format!("the id of a new volume is a number below {FIRST_OWN_ID}"))
}

/// The name of a pool.
pub fn parse_pool(text: &str) -> std::result::Result<String, String> {
    match text {
        "" => Err("the name is empty".to_owned()),
        text if text.chars().any(char::is_control) => {
            Err("no device has a name with control characters".to_owned())
        }
        text => Ok(text.to_owned()),
    }
}

/// The name of a volume, which may be its id.
pub fn parse_name(text: &str) -> std::result::Result<String, String> {
    match is_number(text) {
        true => parse(text).map(|_| text.to_owned()),
        false => parse_pool(text),
    }
}

/// Whether a volume's name is an id, and not that of a device.
pub fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A pool, and a volume in it by its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolVolume {
    /// The pool.
    pub pool: String,
    /// The volume.
    pub volume: String,
}

impl PoolVolume {
    /// What `POOL:ID` names.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        match text.rsplit_once(':') {
            Some((pool, volume)) if !pool.is_empty() && !volume.is_empty() => Ok(Self {
                pool: parse_pool(pool)?,
                volume: parse_name(volume)?,
            }),
            _ => Err("it is not POOL:ID".to_owned()),
        }
    }
}

/// A pool, and the id that a volume is to have there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolId {
    /// The pool.
    pub pool: String,
    /// The id, if it is to be another one.
    pub id: Option<u32>,
}

impl PoolId {
    /// What `POOL` or `POOL:ID` names.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        Ok(match text.rsplit_once(':') {
            Some((pool, id)) => Self {
                pool: parse_pool(pool)?,
                id: Some(parse_new(id)?),
            },
            None => Self {
                pool: parse_pool(text)?,
                id: None,
            },
        })
    }

    /// Whether it is a volume itself, as far as the words tell.
    pub fn is(&self, volume: &PoolVolume) -> bool {
        let id = parse(&volume.volume).ok();
        self.pool == volume.pool && (self.id.is_none() || self.id == id)
    }

    /// The id, where it is that of a volume of another pool if none was named.
    pub fn or(&self, id: u32) -> Result<u32> {
        match self.id {
            Some(id) => Ok(id),
            None if is_own(id) => Err(Error::Usage(format!(
                "the id of a new volume is below {FIRST_OWN_ID}, and this one has {id}: name another one, as in {}:ID",
                self.pool
            ))),
            None => Ok(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_24_bits() {
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("16777215"), Ok(LAST));
        for text in ["16777216", "99999999999", "-1", "", "x", "1 "] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse_new("8388607"), Ok(FIRST_OWN_ID - 1));
        for text in ["8388608", "16777215", "16777216", "99999999999"] {
            assert!(parse_new(text).unwrap_err().contains("8388608"), "{text}");
        }
    }

    #[test]
    fn names_are_ids_or_devices() {
        for text in ["0", "16777215", "vg/lv", "7up"] {
            assert_eq!(parse_name(text), Ok(text.to_owned()));
        }
        for text in ["16777216", "99999999999", "", "a\nb"] {
            assert!(parse_name(text).is_err(), "{text}");
        }
        assert_eq!(parse_pool("123456789"), Ok("123456789".to_owned()));
        for text in ["", "a\nb"] {
            assert!(parse_pool(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pools_and_volumes() {
        let both = |text| PoolVolume::parse(text).map(|both| (both.pool, both.volume));
        assert_eq!(both("a:b:1"), Ok(("a:b".to_owned(), "1".to_owned())));
        assert!(both("pool").is_err() && both("pool:").is_err() && both(":1").is_err());
        assert!(both("pool:16777216").is_err());
        let to = |text| PoolId::parse(text).map(|to| (to.pool, to.id));
        assert_eq!(to("pool"), Ok(("pool".to_owned(), None)));
        assert_eq!(to("pool:5"), Ok(("pool".to_owned(), Some(5))));
        assert!(to("pool:x").is_err() && to("pool:8388608").is_err());
        assert!(to("").is_err() && to(":5").is_err());
        let usual = PoolId::parse("pool").unwrap();
        assert_eq!(usual.or(7).ok(), Some(7));
        assert!(matches!(usual.or(FIRST_OWN_ID), Err(Error::Usage(_))));
    }

    #[test]
    fn what_is_the_same_volume() {
        let is = |from, to| {
            PoolId::parse(to)
                .unwrap()
                .is(&PoolVolume::parse(from).unwrap())
        };
        assert!(is("a:0", "a:0") && is("a:0", "a") && is("a:00", "a:0") && is("a:name", "a"));
        assert!(!is("a:0", "a:1") && !is("a:0", "b:0") && !is("a:0", "b") && !is("a:name", "a:0"));
    }
}
