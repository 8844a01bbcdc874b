// SPDX-License-Identifier: GPL-2.0

//! What a stream ends with.

use serde::{
    Deserialize,
    Serialize, //
};
use zerocopy::little_endian::U64;
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

/// How much a stream has.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Counts {
    /// Frames of data.
    pub data_frames: u64,
    /// The data in them, in bytes of the volume.
    pub data: u64,
    /// Discards.
    pub discards: u64,
    /// What they discard, in bytes of the volume.
    pub discarded: u64,
}

/// What there is to know of a stream when it is over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Totals {
    /// How much it has.
    #[serde(flatten)]
    pub counts: Counts,
    /// How long it is, in bytes.
    pub stored: u64,
    /// The digest that it ends with, as 64 hexadecimal digits.
    pub digest: String,
}

/// The payload of the end frame.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct End {
    data_frames: U64,
    data: U64,
    discards: U64,
    discarded: U64,
    digest: [u8; 32],
}

/// The bytes of the end frame's payload.
pub(super) const END: usize = size_of::<End>();

impl End {
    pub(super) fn new(counts: &Counts, digest: &blake3::Hash) -> Self {
        Self {
            data_frames: counts.data_frames.into(),
            data: counts.data.into(),
            discards: counts.discards.into(),
            discarded: counts.discarded.into(),
            digest: *digest.as_bytes(),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            data_frames: self.data_frames.get(),
            data: self.data.get(),
            discards: self.discards.get(),
            discarded: self.discarded.get(),
        }
    }

    pub(super) fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}
