// SPDX-License-Identifier: GPL-2.0

//! Which frames may follow each other.

use crate::stream::{
    end::{
        Counts,
        End,
        END, //
    },
    frame::{
        Encoding,
        Head,
        Kind,
        RawHead,
        MAX_DATA,
        MAX_HEADER, //
    },
    order::Order,
    Header, //
};

/// What is wrong with this as the head of the header's frame; otherwise how long the header is.
pub(super) fn header_len(seed: u32, raw: &RawHead) -> Result<usize, String> {
    let head = raw.parse(seed)?;
    let len = usize::try_from(head.stored).unwrap_or(usize::MAX);
    if len > MAX_HEADER {
        return Err(format!("a header of {len} bytes is too long"));
    }
    let right = Head {
        kind: Kind::Header,
        encoding: Encoding::Raw,
        stored: head.stored,
        sequence: 0,
        offset: 0,
        len: 0,
    };
    if head != right {
        return Err("the stream does not begin with a header".into());
    }
    Ok(len)
}

/// Follows a stream, from frame to frame.
pub(super) struct Scan {
    header: Header,
    seed: u32,
    sequence: u64,
    order: Order,
}

impl Scan {
    /// Follows the stream with the header whose payload this is.
    pub(super) fn new(json: &[u8], seed: u32) -> Result<Self, String> {
        let header: Header =
            serde_json::from_slice(json).map_err(|e| format!("the header is none: {e}"))?;
        let order = Order::new(&header)?;
        Ok(Self {
            header,
            seed,
            sequence: 1,
            order,
        })
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// What is wrong with this as the next head; otherwise what it says. Its payload is no longer than [`MAX_DATA`].
    pub(super) fn head(&mut self, raw: &RawHead) -> Result<Head, String> {
        let head = raw.parse(self.seed)?;
        if head.sequence != self.sequence {
            return Err(format!(
                "this is frame {} instead of {}",
                head.sequence, self.sequence
            ));
        }
        let stored = u64::from(head.stored);
        match (head.kind, head.encoding) {
            (Kind::Data, encoding) => {
                let fits = match encoding {
                    Encoding::Raw => stored == head.len,
                    Encoding::Zstd => stored < head.len,
                };
                if head.len > MAX_DATA as u64 || !fits {
                    return Err(format!(
                        "{stored} bytes do not stand for {} bytes of data",
                        head.len
                    ));
                }
                self.order.data(head.offset, head.len, 1)?;
            }
            (Kind::Discard, Encoding::Raw) if stored == 0 => {
                self.order.discard(head.offset, head.len)?;
            }
            (Kind::End, Encoding::Raw) if stored == END as u64 => {
                if (head.offset, head.len) != (0, 0) {
                    return Err("the end has an offset or a length".into());
                }
            }
            (Kind::Header, _) => return Err("there is a second header".into()),
            _ => {
                return Err(format!(
                    "a payload of {stored} bytes is wrong for this kind"
                ))
            }
        }
        self.sequence = self.sequence.checked_add(1).ok_or("too many frames")?;
        Ok(head)
    }

    /// What is wrong with this as the head of a frame of data, wherever it is; otherwise what it says.
    pub(super) fn again(&self, raw: &RawHead) -> Result<Head, String> {
        let head = raw.parse(self.seed)?;
        let most = MAX_DATA as u64;
        if head.kind != Kind::Data || u64::from(head.stored) > most || head.len > most {
            return Err("there are no data".into());
        }
        Ok(head)
    }

    /// What is wrong with this as the payload of the end; otherwise how much there was.
    pub(super) fn end(&self, end: &End) -> Result<Counts, String> {
        let counts = self.order.counts();
        if end.counts() != *counts {
            return Err(format!(
                "the end counts {:?}, and there was {counts:?}",
                end.counts()
            ));
        }
        if counts.data != self.header.data {
            return Err(format!(
                "the header has announced {} bytes of data, and there were {}",
                self.header.data, counts.data
            ));
        }
        Ok(*counts)
    }
}
