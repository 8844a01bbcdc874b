// SPDX-License-Identifier: GPL-2.0

//! Where a stream was cut off.

use std::{
    fmt,
    str::FromStr, //
};

use data_encoding::BASE64URL_NOPAD;
use zerocopy::{
    little_endian::{
        U32,
        U64, //
    },
    FromBytes,
    IntoBytes, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

use crate::{
    error::Error,
    state::StateId, //
};

/// Where a stream was cut off: what the one that continues it must lead from and to, and its start.
///
/// Its text is meant for a command line: the URL-safe Base64, without padding, of
///
/// | offset | bytes | content |
/// | ---: | ---: | --- |
/// | 0 | 1 | version: 1 |
/// | 1 | 1 | 1 if there is a state to start from, otherwise 0 |
/// | 2 | 8 | offset of the first change that is missing, little-endian |
/// | 10 | 32 | the state that the stream leads to |
/// | 42 | 32 or 0 | the state that it starts from, if there is one |
/// | | 4 | CRC32C over all before, little-endian |
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResumeToken {
    /// The state that the stream starts from.
    pub from: Option<StateId>,
    /// The state that it leads to.
    pub to: StateId,
    /// The offset in bytes of the first change that is missing.
    pub offset: u64,
}

const VERSION: u8 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Fields {
    version: u8,
    has_from: u8,
    offset: U64,
    to: [u8; 32],
}

impl fmt::Display for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = Fields {
            version: VERSION,
            has_from: self.from.is_some().into(),
            offset: self.offset.into(),
            to: *self.to.bytes(),
        };
        let mut bytes = fields.as_bytes().to_vec();
        if let Some(from) = &self.from {
            bytes.extend_from_slice(from.bytes());
        }
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        f.write_str(&BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for ResumeToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let damaged =
            |what: &str| Error::Damaged(format!("\"{text}\" is no token to resume with: {what}"));
        let bytes = BASE64URL_NOPAD
            .decode(text.as_bytes())
            .map_err(|e| damaged(&e.to_string()))?;
        let (rest, checksum) = U32::read_from_suffix(&bytes)
            .map(|(rest, checksum)| (rest, checksum.get()))
            .map_err(|_| damaged("it is too short"))?;
        if crc32c::crc32c(rest) != checksum {
            return Err(damaged("its checksum is wrong"));
        }
        let (fields, from) =
            Fields::read_from_prefix(rest).map_err(|_| damaged("it is too short"))?;
        if fields.version != VERSION {
            return Err(damaged("it is of another version"));
        }
        let from = match (fields.has_from, <[u8; 32]>::try_from(from)) {
            (0, _) if from.is_empty() => None,
            (1, Ok(digest)) => Some(StateId::new(digest)),
            _ => return Err(damaged("it is of a wrong length")),
        };
        Ok(Self {
            from,
            to: StateId::new(fields.to),
            offset: fields.offset.get(),
        })
    }
}
