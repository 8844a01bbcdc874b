// SPDX-License-Identifier: GPL-2.0

//! Writes a stream.

use std::io::Write;

use zerocopy::IntoBytes;
use zstd::bulk::Compressor;

use crate::{
    error::{
        Error,
        Result, //
    },
    stream::{
        end::{
            End,
            Totals, //
        },
        frame::{
            seed,
            Encoding,
            Head,
            Kind,
            Preamble,
            MAX_DATA,
            MAX_HEADER, //
        },
        order::Order,
        Changes,
        Header,
        Record, //
    },
};

/// How hard data are compressed if nothing else is said: fast, as backups are.
pub const DEFAULT_LEVEL: i32 = 3;

/// Writes a stream.
///
/// It refuses what a [`Reader`](super::Reader) would not take. A stream that was not [finished](Self::finish) is none.
pub struct Writer<W> {
    w: W,
    order: Order,
    /// How much data was announced.
    announced: u64,
    /// How much data goes into one frame.
    piece: usize,
    seed: u32,
    sequence: u64,
    digest: blake3::Hasher,
    stored: u64,
    zstd: Compressor<'static>,
    packed: Vec<u8>,
    /// Whether a part of a frame may have been written.
    broken: bool,
}

impl<W: Write> Writer<W> {
    /// Begins a stream, with data compressed as usual.
    pub fn new(w: W, header: &Header) -> Result<Self> {
        Self::with_level(w, header, DEFAULT_LEVEL)
    }

    /// Begins a stream, with data compressed at this level of zstd.
    pub fn with_level(w: W, header: &Header, level: i32) -> Result<Self> {
        let order = Order::new(header).map_err(Error::Refused)?;
        if !zstd::compression_level_range().contains(&level) {
            return Err(Error::Refused(format!("zstd has no level {level}")));
        }
        let json = serde_json::to_vec(header)
            .map_err(|e| Error::Refused(format!("the stream's header: {e}")))?;
        if json.len() > MAX_HEADER {
            return Err(Error::Refused(format!(
                "a header of {} bytes is too long for a stream",
                json.len()
            )));
        }
        let preamble = Preamble::new();
        let mut writer = Self {
            w,
            order,
            announced: header.data,
            piece: piece(header.block_size),
            seed: preamble.checksum(),
            sequence: 0,
            digest: blake3::Hasher::new(),
            stored: 0,
            zstd: Compressor::new(level).map_err(Error::io("zstd"))?,
            packed: Vec::new(),
            broken: false,
        };
        writer.put(preamble.as_bytes())?;
        writer.frame(Kind::Header, Encoding::Raw, 0, 0, &json)?;
        writer.seed = seed(&writer.digest.finalize());
        Ok(writer)
    }

    /// What the volume contains from `offset` on; any amount.
    pub fn data(&mut self, mut offset: u64, data: &[u8]) -> Result {
        let pieces = data.chunks(self.piece);
        self.order
            .data(offset, data.len() as u64, pieces.len() as u64)
            .map_err(Error::Refused)?;
        for piece in pieces {
            self.piece(offset, piece)?;
            // It ends inside the volume.
            offset = offset.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Nothing is mapped there any more.
    pub fn discard(&mut self, offset: u64, len: u64) -> Result {
        self.order.discard(offset, len).map_err(Error::Refused)?;
        self.frame(Kind::Discard, Encoding::Raw, offset, len, &[])
    }

    /// Either of them.
    pub fn record(&mut self, record: &Record) -> Result {
        match record {
            Record::Data { offset, data } => self.data(*offset, data),
            Record::Discard { offset, len } => self.discard(*offset, *len),
        }
    }

    /// All records of these changes, which have the header that this was made with.
    pub fn changes(&mut self, changes: &mut dyn Changes) -> Result {
        while let Some(record) = changes.next()? {
            self.record(&record)?;
        }
        Ok(())
    }

    /// Ends the stream; gives what it has.
    pub fn finish(mut self) -> Result<Totals> {
        let counts = *self.order.counts();
        if counts.data != self.announced {
            return Err(Error::Refused(format!(
                "the stream's header has announced {} bytes of data, and there were {}",
                self.announced, counts.data
            )));
        }
        let digest = self.digest.finalize();
        let end = End::new(&counts, &digest);
        self.frame(Kind::End, Encoding::Raw, 0, 0, end.as_bytes())?;
        self.w.flush().map_err(Error::io("writing the stream"))?;
        Ok(Totals {
            counts,
            stored: self.stored,
            digest: digest.to_string(),
        })
    }

    /// Data for one frame.
    fn piece(&mut self, offset: u64, data: &[u8]) -> Result {
        let mut packed = std::mem::take(&mut self.packed);
        packed.clear();
        packed.reserve(zstd::zstd_safe::compress_bound(data.len()));
        self.zstd
            .compress_to_buffer(data, &mut packed)
            .map_err(Error::io("zstd"))?;
        let (encoding, payload) = if packed.len() < data.len() {
            (Encoding::Zstd, packed.as_slice())
        } else {
            (Encoding::Raw, data)
        };
        let result = self.frame(Kind::Data, encoding, offset, data.len() as u64, payload);
        self.packed = packed;
        result
    }

    fn frame(
        &mut self,
        kind: Kind,
        encoding: Encoding,
        offset: u64,
        len: u64,
        payload: &[u8],
    ) -> Result {
        let stored = u32::try_from(payload.len())
            .map_err(|_| Error::Refused("a frame of the stream is too long".into()))?;
        let head = Head {
            kind,
            encoding,
            stored,
            sequence: self.sequence,
            offset,
            len,
        };
        let bytes = head.to_bytes(self.seed, payload);
        self.put(&bytes)?;
        self.put(payload)?;
        self.sequence = self.sequence.saturating_add(1);
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result {
        if self.broken {
            return Err(Error::Refused("the stream was given up".into()));
        }
        self.broken = true;
        self.w
            .write_all(bytes)
            .map_err(Error::io("writing the stream"))?;
        self.broken = false;
        self.digest.update(bytes);
        self.stored = self.stored.saturating_add(bytes.len() as u64);
        Ok(())
    }
}

/// How much data goes into one frame: whole blocks, unless one is too large.
fn piece(block_size: u64) -> usize {
    let most = MAX_DATA as u64;
    let rest = most.checked_rem(block_size).filter(|rest| *rest != most);
    usize::try_from(most.saturating_sub(rest.unwrap_or(0))).unwrap_or(MAX_DATA)
}
