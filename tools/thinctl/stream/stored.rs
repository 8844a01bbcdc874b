// SPDX-License-Identifier: GPL-2.0

//! A stream in a file, by places.

use std::{
    fs::File,
    os::unix::fs::FileExt, //
};

use crate::{
    error::{
        Error,
        Result, //
    },
    stream::{
        end::{
            End,
            Totals,
            END, //
        },
        frame::{
            decode,
            Kind,
            RawHead,
            HEAD, //
        },
        input::{
            damaged,
            Input, //
        },
        reader::begin,
        scan::Scan,
        Header, //
    },
};

/// A stream in a file. Its frames are found without reading what they contain, and data are read where they are.
pub(crate) struct Stored {
    file: File,
    scan: Scan,
    /// Where the next frame is.
    at: u64,
}

/// What a frame is about, and where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// Data for these bytes of the volume, to be read from this byte of the stream.
    Data { offset: u64, len: u64, at: u64 },
    /// Nothing is mapped there any more.
    Discard { offset: u64, len: u64 },
}

impl Stored {
    /// Reads the header.
    pub(crate) fn new(file: File) -> Result<Self> {
        let mut input = Input::new(&file);
        let (scan, _) = begin(&mut input)?;
        let at = input.at();
        Ok(Self { file, scan, at })
    }

    pub(crate) fn header(&self) -> &Header {
        self.scan.header()
    }

    /// Hands out the places of all frames, to the end. The digest is that which the end tells: it is not looked whether
    /// this is so, but it is only there if no frame is missing.
    pub(crate) fn places(&mut self, mut f: impl FnMut(Place)) -> Result<Totals> {
        loop {
            let at = self.at;
            let raw = RawHead::new(self.array(at)?);
            let head = self.scan.head(&raw).map_err(|what| damaged(at, what))?;
            let payload = after(at, HEAD as u64)?;
            self.at = after(payload, head.stored.into())?;
            let (offset, len) = (head.offset, head.len);
            match head.kind {
                Kind::Data => f(Place::Data { offset, len, at }),
                Kind::Discard => f(Place::Discard { offset, len }),
                Kind::Header | Kind::End => {
                    let payload: [u8; END] = self.array(payload)?;
                    raw.check_payload(&payload)
                        .map_err(|what| damaged(at, what))?;
                    let end: End = zerocopy::transmute!(payload);
                    let counts = self.scan.end(&end).map_err(|what| damaged(at, what))?;
                    return Ok(Totals {
                        counts,
                        stored: self.at,
                        digest: blake3::Hash::from_bytes(*end.digest()).to_string(),
                    });
                }
            }
        }
    }

    /// The data of the frame at this place.
    pub(crate) fn data(&self, at: u64) -> Result<Vec<u8>> {
        let damaged = |what: String| damaged(at, what);
        let raw = RawHead::new(self.array(at)?);
        let head = self.scan.again(&raw).map_err(damaged)?;
        let mut payload = vec![0; head.stored as usize];
        self.read(&mut payload, after(at, HEAD as u64)?)?;
        raw.check_payload(&payload).map_err(damaged)?;
        decode(&head, payload).map_err(damaged)
    }

    fn array<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(&mut bytes, at)?;
        Ok(bytes)
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> Result {
        self.file.read_exact_at(bytes, at).map_err(|e| {
            if e.kind() == std::io::ErrorKind::UnexpectedEof {
                damaged(at, "it is cut off")
            } else {
                Error::Io(format!("reading byte {at} of the stream"), e)
            }
        })
    }
}

fn after(at: u64, len: u64) -> Result<u64> {
    at.checked_add(len)
        .ok_or_else(|| damaged(at, "it is too long"))
}
