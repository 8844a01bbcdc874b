// SPDX-License-Identifier: GPL-2.0

//! The name of what a volume contains.

use std::{
    fmt,
    str::FromStr, //
};

use serde::{
    Deserialize,
    Deserializer,
    Serialize,
    Serializer, //
};

use crate::error::Error;

/// The name of what a volume contains: two volumes of one state read alike, also in different pools.
///
/// Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateId([u8; 32]);

impl StateId {
    /// The state of this digest.
    pub const fn new(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for StateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for StateId {
    type Err = Error;

    fn from_str(digits: &str) -> Result<Self, Error> {
        let hash = blake3::Hash::from_hex(digits)
            .map_err(|e| Error::Damaged(format!("\"{digits}\" names no state: {e}")))?;
        Ok(Self(*hash.as_bytes()))
    }
}

impl Serialize for StateId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StateId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// `n` random bytes in hexadecimal digits.
pub fn random_hex(n: usize) -> crate::Result<String> {
    use std::io::Read;
    let mut bytes = vec![0; n];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(Error::io("/dev/urandom"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
