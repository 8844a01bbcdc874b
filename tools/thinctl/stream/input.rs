// SPDX-License-Identifier: GPL-2.0

//! Bytes, and how many there were.

use std::{
    fmt::Display,
    io::{
        ErrorKind,
        Read, //
    }, //
};

use crate::error::{
    Error,
    Result, //
};

/// Bytes, and how many there were.
pub(super) struct Input<R> {
    r: R,
    at: u64,
}

impl<R: Read> Input<R> {
    pub(super) fn new(r: R) -> Self {
        Self { r, at: 0 }
    }

    /// How many bytes were read.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Fills the buffer.
    pub(super) fn fill(&mut self, mut buffer: &mut [u8]) -> Result {
        while !buffer.is_empty() {
            match self.r.read(buffer) {
                Ok(0) => return Err(damaged(self.at, "it is cut off")),
                Ok(n) => {
                    self.at = self.at.saturating_add(n as u64);
                    buffer = buffer.get_mut(n..).unwrap_or_default();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(Error::Io(
                        format!("reading byte {} of the stream", self.at),
                        e,
                    ))
                }
            }
        }
        Ok(())
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }
}

/// Says what is wrong with a stream, and where.
pub(super) fn damaged(at: u64, what: impl Display) -> Error {
    Error::Damaged(format!("damaged stream, at byte {at}: {what}"))
}
