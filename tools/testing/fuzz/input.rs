// SPDX-License-Identifier: GPL-2.0

//! What the bytes of an input mean.
//!
//! The first [`HEADER`] bytes choose the base image and what is around it; all that follows are records of [`RECORD`]
//! bytes. Those with the uppermost bit of their first byte clear are edits, the others operations; edits come first,
//! wherever they stand. So any bytes are an input, and records can be moved, left out and exchanged.

/// The bytes of the header.
pub const HEADER: usize = 4;

/// The bytes of a record.
pub const RECORD: usize = 12;

/// How many records count.
pub const MAX_RECORDS: usize = 64;

/// The bit of a record's kind that tells operations from edits.
pub const OPERATION: u8 = 0x80;

/// An edit or an operation: its kind and three numbers, of which each kind makes what it needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// What it is.
    pub kind: u8,
    /// A small number.
    pub a: u8,
    /// A number.
    pub b: u16,
    /// A large number.
    pub c: u64,
}

impl Record {
    fn of(bytes: &[u8; RECORD]) -> Self {
        let [kind, a, b0, b1, c @ ..] = *bytes;
        Self {
            kind,
            a,
            b: u16::from_le_bytes([b0, b1]),
            c: u64::from_le_bytes(c),
        }
    }

    /// The record's bytes.
    pub fn to_bytes(self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        bytes[0] = self.kind;
        bytes[1] = self.a;
        bytes[2..4].copy_from_slice(&self.b.to_le_bytes());
        bytes[4..].copy_from_slice(&self.c.to_le_bytes());
        bytes
    }

    /// Whether this is an operation, not an edit.
    pub fn is_operation(self) -> bool {
        self.kind & OPERATION != 0
    }
}

/// What an input stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Input {
    /// Which base image.
    pub base: u8,
    /// How many blocks the device has beyond the image.
    pub extra: u64,
    /// Whether to open it read-only.
    pub read_only: bool,
    /// Changes of the image.
    pub edits: Vec<Record>,
    /// What is done with it.
    pub operations: Vec<Record>,
}

impl Input {
    /// The meaning of any bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let (header, rest) = bytes.split_at(bytes.len().min(HEADER));
        let at = |i: usize| header.get(i).copied().unwrap_or(0);
        let (records, _) = rest.as_chunks::<RECORD>();
        let (operations, edits) = records
            .iter()
            .take(MAX_RECORDS)
            .map(Record::of)
            .partition(|record| record.is_operation());
        Self {
            base: at(0),
            extra: if at(1) & 1 != 0 { 64 } else { 0 },
            read_only: at(1) & 0xf0 == 0xf0,
            edits,
            operations,
        }
    }
}
