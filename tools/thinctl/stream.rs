// SPDX-License-Identifier: GPL-2.0

//! The changes that lead from one state of a volume to another.
//!
//! [`Changes`] is where they come from: a [`Reader`] of a stream, or something that works them out. [`Writer`] makes a
//! stream of them.
//!
//! # Format of streams, version 1
//!
//! A stream is a preamble and frames: one header, any number of data and discards, one end. Nothing stands between them,
//! and the stream is over after the end; what follows in the same pipe is none of its business. All numbers are
//! little-endian and without sign. CRC32C is Castagnoli's polynomial with all bits inverted before and after, as in iSCSI;
//! `crc32c(seed, bytes)` goes on from a checksum `seed` as if its bytes came before, and `crc32c(0, bytes)` is that of the
//! bytes alone.
//!
//! ## Preamble, 16 bytes
//!
//! | offset | bytes | content |
//! | ---: | ---: | --- |
//! | 0 | 8 | 0x89 `T` `H` `I` `N` 0x0d 0x0a 0x1a |
//! | 8 | 4 | version: 1 |
//! | 12 | 4 | `crc32c(0, bytes 0 to 11)` |
//!
//! ## Frame: a head of 40 bytes, and a payload
//!
//! | offset | bytes | content |
//! | ---: | ---: | --- |
//! | 0 | 1 | kind: 1 header, 2 data, 3 discard, 4 end |
//! | 1 | 1 | encoding of the payload: 0 as it is, 1 one zstd frame |
//! | 2 | 2 | 0 |
//! | 4 | 4 | bytes of the payload as stored |
//! | 8 | 8 | sequence number: 0 for the header, one more in each frame |
//! | 16 | 8 | offset in the volume, in bytes |
//! | 24 | 8 | length in the volume, in bytes |
//! | 32 | 4 | `crc32c(seed, bytes 0 to 31)` |
//! | 36 | 4 | `crc32c(the checksum before, payload)` |
//! | 40 | | payload |
//!
//! The seed of the header frame is the preamble's checksum. That of all others is the number in the first 4 bytes of the
//! BLAKE3 digest over the preamble and the whole header frame: frames of another stream do not fit.
//!
//! | kind | encoding | payload | offset and length |
//! | --- | --- | --- | --- |
//! | header | 0 | JSON, of at most 64 KiB | 0 |
//! | data | 0 or 1 | what the volume contains there | at most 1 MiB |
//! | discard | 0 | none | nothing is mapped there any more |
//! | end | 0 | 64 bytes, see below | 0 |
//!
//! The payload of a data frame is compressed if that makes it shorter than its length in the volume, and has exactly that
//! length otherwise. Data and discards ascend and do not overlap, are not empty, lie inside the volume, and begin at the
//! header's `start` or after it. All begin and end at multiples of 512; discards at multiples of the header's
//! `block_size`, or at the end of the volume.
//!
//! ## Payload of the header
//!
//! An object with the fields of [`Header`]. States are strings of 64 hexadecimal digits, or null. A reader skips fields
//! that it does not know. `size`, `block_size` and `start` are multiples of 512; `block_size` is not 0; `start` is not
//! above `size`, and `data` not above what is between them.
//!
//! ## Payload of the end
//!
//! | offset | bytes | content |
//! | ---: | ---: | --- |
//! | 0 | 8 | number of data frames |
//! | 8 | 8 | sum of their lengths in the volume; the header's `data` |
//! | 16 | 8 | number of discards |
//! | 24 | 8 | sum of their lengths |
//! | 32 | 32 | BLAKE3 digest over all bytes before the end frame |

mod end;
mod frame;
mod input;
mod order;
mod reader;
mod scan;
mod stored;
mod token;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

pub use end::{
    Counts,
    Totals, //
};
pub use frame::{
    MAX_DATA,
    MAX_HEADER, //
};
pub use reader::Reader;
pub(crate) use stored::{
    Place,
    Stored, //
};
pub use token::ResumeToken;
pub use writer::{
    Writer,
    DEFAULT_LEVEL, //
};

use std::time::{
    SystemTime,
    UNIX_EPOCH, //
};

use serde::{
    Deserialize,
    Serialize, //
};

use crate::{
    error::Result,
    state::StateId, //
};

/// What a stream begins with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Header {
    /// The size of the volume in bytes.
    pub size: u64,
    /// The size of its pool's blocks in bytes. Discards begin and end at multiples of it, or at the end of the volume;
    /// data may be cut at smaller ones.
    pub block_size: u64,
    /// The state that the stream leads to.
    pub to: StateId,
    /// The state that it starts from; `None` for a volume without any mapping.
    pub from: Option<StateId>,
    /// The offset in bytes of the first change that it has: not 0 if it continues one that was cut off.
    pub start: u64,
    /// How many bytes of data follow, before compression.
    pub data: u64,
    /// What was sent, for people.
    pub name: String,
    /// When, in seconds since 1970.
    pub time: u64,
}

/// The time, as headers tell it.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// One change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// What the volume contains from `offset` on.
    Data {
        /// Where, in bytes.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// Nothing is mapped here any more.
    Discard {
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
}

impl Record {
    /// Where it begins, in bytes.
    pub fn offset(&self) -> u64 {
        match self {
            Self::Data { offset, .. } | Self::Discard { offset, .. } => *offset,
        }
    }

    /// How many bytes of the volume it is about.
    pub fn len(&self) -> u64 {
        match self {
            Self::Data { data, .. } => data.len() as u64,
            Self::Discard { len, .. } => *len,
        }
    }

    /// Whether it is about nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where changes come from, in ascending order of offsets and without overlaps.
pub trait Changes {
    /// What they are changes of.
    fn header(&self) -> &Header;

    /// The next one; `None` after the last, when all that there should be was there.
    fn next(&mut self) -> Result<Option<Record>>;

    /// Looks whether all of it is there and undamaged, if it can be read twice. For before the first
    /// [`next`](Self::next).
    fn rehearse(&mut self) -> Result {
        Ok(())
    }
}
