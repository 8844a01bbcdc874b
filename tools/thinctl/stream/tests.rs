// SPDX-License-Identifier: GPL-2.0

//! Streams there and back, and streams that are wrong.

mod hostile;
mod round_trip;
mod token;

use std::io::Read;

use crate::{
    error::{
        Error,
        Result, //
    },
    state::StateId,
    stream::{
        Changes,
        Header,
        Reader,
        Record,
        Writer, //
    },
};

/// Numbers that look random: splitmix64.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .take(len)
            .collect()
    }
}

pub(crate) fn header(size: u64, block_size: u64, data: u64) -> Header {
    Header {
        size,
        block_size,
        to: StateId::new([1; 32]),
        from: Some(StateId::new([2; 32])),
        start: 0,
        data,
        name: "vg/volume".into(),
        time: 1_800_000_000,
    }
}

fn write(header: &Header, records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, header).unwrap();
    for record in records {
        writer.record(record).unwrap();
    }
    let totals = writer.finish().unwrap();
    assert_eq!(totals.stored, bytes.len() as u64);
    bytes
}

/// All records of a stream, in front of which nothing is wrong.
fn read(r: impl Read) -> Result<Vec<Record>> {
    let mut reader = Reader::new(r)?;
    let mut records = Vec::new();
    while let Some(record) = reader.next()? {
        assert!(reader.totals().is_none());
        records.push(record);
    }
    assert!(reader.totals().is_some());
    Ok(records)
}

#[track_caller]
fn refused(bytes: &[u8], what: &str) {
    match read(bytes) {
        Err(Error::Damaged(message)) => assert!(message.contains("at byte"), "{message}"),
        other => panic!("{what}: {:?}", other.map(|records| records.len())),
    }
}

/// A small stream with all kinds of frames: data that get shorter, data that do not, a discard.
fn small() -> Vec<u8> {
    let records = [
        Record::Data {
            offset: 0,
            data: vec![7; 1024],
        },
        Record::Data {
            offset: 1024,
            data: Numbers(1).bytes(512),
        },
        Record::Discard {
            offset: 4096,
            len: 8192,
        },
        Record::Data {
            offset: 65536,
            data: vec![0; 512],
        },
    ];
    write(&header(1 << 20, 4096, 2048), &records)
}

/// The frames of a stream, by what the documentation of the format says: the preamble comes first.
fn split(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut len = 16;
    while !bytes.is_empty() {
        let (frame, rest) = bytes.split_at(len);
        frames.push(frame.to_vec());
        bytes = rest;
        if let Some(stored) = rest.get(4..8) {
            len = 40 + u32::from_le_bytes(stored.try_into().unwrap()) as usize;
        }
    }
    frames
}
