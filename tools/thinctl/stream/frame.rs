// SPDX-License-Identifier: GPL-2.0

//! Preamble and frames of a stream.

use zerocopy::{
    little_endian::{
        U16,
        U32,
        U64, //
    },
    IntoBytes, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

/// How much data a frame has at most, in bytes of the volume.
pub const MAX_DATA: usize = 1 << 20;

/// How long the header is at most, in bytes of JSON.
pub const MAX_HEADER: usize = 1 << 16;

/// What all begins and ends at multiples of, in bytes.
pub(super) const SECTOR: u64 = 512;

const MAGIC: [u8; 8] = *b"\x89THIN\r\n\x1a";
const VERSION: u32 = 1;

/// What a stream begins with.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Preamble {
    magic: [u8; 8],
    version: U32,
    checksum: U32,
}

/// The bytes of a preamble.
pub(super) const PREAMBLE: usize = size_of::<Preamble>();

impl Preamble {
    pub(super) fn new() -> Self {
        let mut preamble = Self {
            magic: MAGIC,
            version: VERSION.into(),
            checksum: 0.into(),
        };
        preamble.checksum = preamble.right_checksum().into();
        preamble
    }

    fn right_checksum(&self) -> u32 {
        let crc = crc32c::crc32c(&self.magic);
        crc32c::crc32c_append(crc, self.version.as_bytes())
    }

    /// The seed for the frame of the header.
    pub(super) fn checksum(&self) -> u32 {
        self.checksum.get()
    }

    /// What is wrong with these bytes; otherwise the seed for the frame of the header.
    pub(super) fn check(bytes: [u8; PREAMBLE]) -> Result<u32, String> {
        let preamble: Self = zerocopy::transmute!(bytes);
        if preamble.magic != MAGIC {
            return Err("this is no stream of thinctl".into());
        }
        let checksum = preamble.right_checksum();
        if preamble.checksum.get() != checksum {
            return Err("the checksum of the preamble is wrong".into());
        }
        if preamble.version.get() != VERSION {
            return Err(format!(
                "the stream is of version {}, and only {VERSION} is known",
                preamble.version
            ));
        }
        Ok(checksum)
    }
}

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    Header = 1,
    Data,
    Discard,
    End,
}

/// How a payload is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Encoding {
    Raw,
    Zstd,
}

/// The head of a frame, without its checksums.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) encoding: Encoding,
    /// The bytes of the payload as stored.
    pub(super) stored: u32,
    pub(super) sequence: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// The bytes of a head.
pub(super) const HEAD: usize = size_of::<RawHead>();

/// A head as it is in the stream.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawHead {
    fields: RawFields,
    /// Of the fields.
    checksum: U32,
    /// Of the payload.
    payload_checksum: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawFields {
    kind: u8,
    encoding: u8,
    reserved: U16,
    stored: U32,
    sequence: U64,
    offset: U64,
    len: U64,
}

impl Head {
    /// The head as bytes, with checksums.
    pub(super) fn to_bytes(self, seed: u32, payload: &[u8]) -> [u8; HEAD] {
        let fields = RawFields {
            kind: self.kind as u8,
            encoding: self.encoding as u8,
            reserved: 0.into(),
            stored: self.stored.into(),
            sequence: self.sequence.into(),
            offset: self.offset.into(),
            len: self.len.into(),
        };
        let checksum = crc32c::crc32c_append(seed, fields.as_bytes());
        zerocopy::transmute!(RawHead {
            fields,
            checksum: checksum.into(),
            payload_checksum: crc32c::crc32c_append(checksum, payload).into(),
        })
    }
}

impl RawHead {
    pub(super) fn new(bytes: [u8; HEAD]) -> Self {
        zerocopy::transmute!(bytes)
    }

    /// The head, if its checksum is right and it makes sense by itself.
    pub(super) fn parse(&self, seed: u32) -> Result<Head, String> {
        let fields = &self.fields;
        if crc32c::crc32c_append(seed, fields.as_bytes()) != self.checksum.get() {
            return Err("the checksum of the frame's head is wrong".into());
        }
        if fields.reserved.get() != 0 {
            return Err("the head's unused field is not 0".into());
        }
        let kind = match fields.kind {
            1 => Kind::Header,
            2 => Kind::Data,
            3 => Kind::Discard,
            4 => Kind::End,
            other => return Err(format!("there are no frames of kind {other}")),
        };
        let encoding = match fields.encoding {
            0 => Encoding::Raw,
            1 => Encoding::Zstd,
            other => return Err(format!("there is no encoding {other}")),
        };
        Ok(Head {
            kind,
            encoding,
            stored: fields.stored.get(),
            sequence: fields.sequence.get(),
            offset: fields.offset.get(),
            len: fields.len.get(),
        })
    }

    /// Whether this is the head's payload.
    pub(super) fn check_payload(&self, payload: &[u8]) -> Result<(), String> {
        let checksum = crc32c::crc32c_append(self.checksum.get(), payload);
        if checksum != self.payload_checksum.get() {
            return Err("the checksum of the frame's payload is wrong".into());
        }
        Ok(())
    }
}

/// What the frames after the header's are seeded with, of the digest over all until then.
pub(super) fn seed(digest: &blake3::Hash) -> u32 {
    let [a, b, c, d, ..] = *digest.as_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The data that a payload stands for.
pub(super) fn decode(head: &Head, payload: Vec<u8>) -> Result<Vec<u8>, String> {
    if head.encoding == Encoding::Raw {
        return Ok(payload);
    }
    let len = usize::try_from(head.len)
        .ok()
        .filter(|len| *len <= MAX_DATA)
        .ok_or_else(|| format!("{} bytes are too many for a frame", head.len))?;
    let of_zstd = zstd::zstd_safe::find_frame_compressed_size(&payload);
    if of_zstd != Ok(payload.len()) {
        return Err("the payload is not one frame of zstd".into());
    }
    let mut data = vec![0; len];
    let got = zstd::bulk::Decompressor::new()
        .and_then(|mut zstd| zstd.decompress_to_buffer(&payload, data.as_mut_slice()))
        .map_err(|e| format!("the payload cannot be decompressed: {e}"))?;
    if got != len {
        return Err(format!(
            "the payload has {got} bytes of data instead of {len}"
        ));
    }
    Ok(data)
}
