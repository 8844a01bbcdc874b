// SPDX-License-Identifier: GPL-2.0

//! Reads a stream.

use std::io::Read;

use crate::{
    error::Result,
    stream::{
        end::{
            End,
            Totals,
            END, //
        },
        frame::{
            decode,
            seed,
            Kind,
            Preamble,
            RawHead,
            HEAD,
            PREAMBLE, //
        },
        input::{
            damaged,
            Input, //
        },
        scan::{
            header_len,
            Scan, //
        },
        Changes,
        Header,
        Record, //
    },
};

/// Reads a stream.
///
/// It believes nothing that it has not checked, and takes no more memory than a frame needs. It reads exactly the bytes
/// of the stream, nothing behind it. What was given before an error was in the stream, but says nothing as long as the end
/// was not there: who applies it must do so where nobody looks yet.
pub struct Reader<R> {
    input: Input<R>,
    scan: Scan,
    digest: blake3::Hasher,
    state: State,
}

enum State {
    /// There is more to come.
    Frames,
    /// The end was there.
    Over(Totals),
    /// There was an error.
    Broken,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    pub fn new(r: R) -> Result<Self> {
        let mut input = Input::new(r);
        let (scan, digest) = begin(&mut input)?;
        Ok(Self {
            input,
            scan,
            digest,
            state: State::Frames,
        })
    }

    /// How many bytes were read.
    pub fn position(&self) -> u64 {
        self.input.at()
    }

    /// What there was, after the end.
    pub fn totals(&self) -> Option<&Totals> {
        match &self.state {
            State::Over(totals) => Some(totals),
            State::Frames | State::Broken => None,
        }
    }

    fn frame(&mut self) -> Result<(State, Option<Record>)> {
        let at = self.input.at();
        let damaged = |what: String| damaged(at, what);
        let bytes: [u8; HEAD] = self.input.array()?;
        let raw = RawHead::new(bytes);
        let head = self.scan.head(&raw).map_err(damaged)?;
        if head.kind == Kind::End {
            let payload: [u8; END] = self.input.array()?;
            raw.check_payload(&payload).map_err(damaged)?;
            let end: End = zerocopy::transmute!(payload);
            let counts = self.scan.end(&end).map_err(damaged)?;
            let digest = self.digest.finalize();
            if digest != *end.digest() {
                return Err(damaged(
                    "the digest over all that came before is wrong".into(),
                ));
            }
            let totals = Totals {
                counts,
                stored: self.input.at(),
                digest: digest.to_string(),
            };
            return Ok((State::Over(totals), None));
        }
        let payload = self.input.bytes(head.stored as usize)?;
        raw.check_payload(&payload).map_err(damaged)?;
        self.digest.update(&bytes);
        self.digest.update(&payload);
        let record = match head.kind {
            Kind::Data => Record::Data {
                offset: head.offset,
                data: decode(&head, payload).map_err(damaged)?,
            },
            _ => Record::Discard {
                offset: head.offset,
                len: head.len,
            },
        };
        Ok((State::Frames, Some(record)))
    }
}

impl<R: Read> Changes for Reader<R> {
    fn header(&self) -> &Header {
        self.scan.header()
    }

    fn next(&mut self) -> Result<Option<Record>> {
        match self.state {
            State::Frames => {}
            State::Over(_) => return Ok(None),
            State::Broken => return Err(damaged(self.input.at(), "it was given up")),
        }
        self.state = State::Broken;
        let (state, record) = self.frame()?;
        self.state = state;
        Ok(record)
    }
}

/// Reads preamble and header; gives also the digest over them.
pub(super) fn begin<R: Read>(input: &mut Input<R>) -> Result<(Scan, blake3::Hasher)> {
    let mut digest = blake3::Hasher::new();
    let bytes: [u8; PREAMBLE] = input.array()?;
    digest.update(&bytes);
    let preamble = Preamble::check(bytes).map_err(|what| damaged(0, what))?;
    let at = input.at();
    let damaged = |what: String| damaged(at, what);
    let bytes: [u8; HEAD] = input.array()?;
    digest.update(&bytes);
    let raw = RawHead::new(bytes);
    let len = header_len(preamble, &raw).map_err(damaged)?;
    let json = input.bytes(len)?;
    digest.update(&json);
    raw.check_payload(&json).map_err(damaged)?;
    let scan = Scan::new(&json, seed(&digest.finalize())).map_err(damaged)?;
    Ok((scan, digest))
}
