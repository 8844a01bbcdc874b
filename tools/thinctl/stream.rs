// SPDX-License-Identifier: GPL-2.0

//! The changes that lead from one state of a volume to another.

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
    /// The size of its pool's blocks in bytes. Records begin and end at multiples of it, or at the end of the volume.
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

/// Where changes come from, in ascending order of offsets and without overlaps.
pub trait Changes {
    /// What they are changes of.
    fn header(&self) -> &Header;

    /// The next one; `None` after the last, when all that there should be was there.
    fn next(&mut self) -> Result<Option<Record>>;
}
