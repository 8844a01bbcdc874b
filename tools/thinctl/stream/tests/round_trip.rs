// SPDX-License-Identifier: GPL-2.0

//! What is written is read.

use std::io::{
    self,
    Read, //
};

use proptest::{
    collection::vec,
    prelude::*, //
};

use super::{
    header,
    read,
    write,
    Numbers, //
};
use crate::{
    error::Error,
    stream::{
        Changes,
        Header,
        Reader,
        Record,
        Writer,
        MAX_DATA,
        MAX_HEADER, //
    },
};

/// Gives a few bytes at a time, and an interruption now and then.
struct Drops<R>(R, Numbers);

impl<R: Read> Read for Drops<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.1.below(8) {
            0 => Err(io::ErrorKind::Interrupted.into()),
            n => {
                let len = buffer.len().min(1 << (2 * n));
                self.0.read(&mut buffer[..len])
            }
        }
    }
}

fn content(kind: u64, seed: u64, len: usize) -> Vec<u8> {
    match kind {
        0 => vec![0; len],
        1 => Numbers(seed).bytes(len),
        _ => {
            let some = Numbers(seed).bytes(97);
            some.iter().copied().cycle().take(len).collect()
        }
    }
}

/// A header and records that it may have, of blocks of any size.
fn changes() -> impl Strategy<Value = (Header, Vec<Record>)> {
    let record = (0_u64..3, 1_u64..40, 0_u64..5, any::<u64>());
    (1_u64..3000, vec(record, 0..12), 0_u64..100, 0_u64..20).prop_map(
        |(sectors, records, start, tail)| {
            let block_size = sectors * 512;
            let start = start * 512;
            let mut at = start.next_multiple_of(block_size);
            let mut all = Vec::new();
            for (gap, blocks, kind, seed) in records {
                at += gap * block_size;
                // No more than some megabytes.
                let blocks = blocks.min(1 + (4 << 20) / block_size);
                let len = blocks * block_size;
                all.push(if kind < 3 {
                    let data = content(kind, seed, len as usize);
                    Record::Data { offset: at, data }
                } else {
                    Record::Discard { offset: at, len }
                });
                at += len;
            }
            let data = all.iter().map(|record| match record {
                Record::Data { data, .. } => data.len() as u64,
                Record::Discard { .. } => 0,
            });
            let header = Header {
                start,
                ..header(at + tail * 512, block_size, data.sum())
            };
            (header, all)
        },
    )
}

/// Puts together what was split.
fn join(records: Vec<Record>) -> Vec<Record> {
    let mut joined: Vec<Record> = Vec::new();
    for record in records {
        match (joined.last_mut(), record) {
            (
                Some(Record::Data { offset, data }),
                Record::Data {
                    offset: next,
                    data: more,
                },
            ) if *offset + data.len() as u64 == next => data.extend(more),
            (_, record) => joined.push(record),
        }
    }
    joined
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read((header, records) in changes(), level in -5..6, seed: u64) {
        let mut bytes = Vec::new();
        let mut writer = Writer::with_level(&mut bytes, &header, level).unwrap();
        for record in &records {
            writer.record(record).unwrap();
        }
        let written = writer.finish().unwrap();
        let len = bytes.len() as u64;
        prop_assert_eq!(written.stored, len);
        bytes.extend_from_slice(b"and what comes next");

        let mut left = bytes.as_slice();
        let mut reader = Reader::new(Drops(&mut left, Numbers(seed))).unwrap();
        prop_assert_eq!(reader.header(), &header);
        let mut read = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            if let Record::Data { data, .. } = &record {
                prop_assert!(data.len() <= MAX_DATA);
            }
            read.push(record);
        }
        prop_assert_eq!(reader.next().unwrap(), None);
        prop_assert_eq!(reader.position(), len);
        prop_assert_eq!(reader.totals().unwrap(), &written);
        prop_assert_eq!(written.counts.data, header.data);
        prop_assert_eq!(left, b"and what comes next");
        prop_assert_eq!(join(read), join(records));
    }
}

#[test]
fn data_are_cut_at_blocks() {
    let block = 192 << 10;
    let data = Numbers(3).bytes(7 * block);
    let records = [Record::Data { offset: 0, data }];
    let size = 7 * block as u64;
    let bytes = write(&header(size, block as u64, size), &records);
    let lens: Vec<_> = read(bytes.as_slice())
        .unwrap()
        .iter()
        .map(|record| match record {
            Record::Data { data, .. } => data.len() / block,
            Record::Discard { .. } => 0,
        })
        .collect();
    assert_eq!(lens, [5, 2]);
}

#[test]
fn data_get_shorter() {
    let data = vec![0; 1 << 20];
    let bytes = write(
        &header(1 << 20, 65536, 1 << 20),
        &[Record::Data { offset: 0, data }],
    );
    assert!(bytes.len() < 1000, "{}", bytes.len());
}

/// The format is a promise: streams of yesterday are read tomorrow.
#[test]
fn the_format_stays() {
    let data = Numbers(1).bytes(512);
    let records = [
        Record::Data { offset: 0, data },
        Record::Discard {
            offset: 4096,
            len: 4096,
        },
    ];
    let bytes = write(&header(1 << 20, 4096, 512), &records);
    assert_eq!(
        blake3::hash(&bytes).to_string(),
        "698c9ffa1b61318264634977e573a638d2838da334d990d7573f1aa5c166d237"
    );
}

#[track_caller]
fn refuses(header: &Header, records: &[Record], part: &str) {
    let mut bytes = Vec::new();
    let result = Writer::new(&mut bytes, header).and_then(|mut writer| {
        for record in records {
            writer.record(record)?;
        }
        writer.finish()
    });
    match result {
        Err(Error::Refused(message)) => assert!(message.contains(part), "{message}"),
        other => panic!("{part}: {other:?}"),
    }
}

fn data(offset: u64, len: usize) -> Record {
    Record::Data {
        offset,
        data: vec![1; len],
    }
}

#[test]
fn the_writer_refuses_what_is_no_stream() {
    let good = header(1 << 20, 4096, 0);
    let discard = |offset, len| Record::Discard { offset, len };
    refuses(&good, &[discard(0, 4096), discard(0, 4096)], "too late");
    refuses(&good, &[discard(4096, 4096), data(0, 512)], "too late");
    refuses(&good, &[data(0, 1024), data(512, 512)], "too late");
    refuses(&good, &[data(1 << 20, 512)], "not inside");
    refuses(&good, &[data((1 << 20) - 512, 1024)], "not inside");
    refuses(&good, &[discard(u64::MAX - 511, 512)], "not inside");
    refuses(&good, &[data(0, 0)], "empty");
    refuses(&good, &[discard(0, 0)], "empty");
    refuses(&good, &[data(0, 511)], "not made of");
    refuses(&good, &[data(1, 512)], "not made of");
    refuses(&good, &[discard(512, 4096 - 512)], "not made of");
    refuses(&good, &[discard(0, 512)], "not made of");
    refuses(&good, &[data(0, 512)], "announced");
    let more = Header {
        data: 512,
        ..good.clone()
    };
    refuses(&more, &[], "announced");
    let start = Header {
        start: 8192,
        ..good.clone()
    };
    refuses(&start, &[discard(4096, 4096)], "too late");
    let start = Header {
        start: 2 << 20,
        ..good.clone()
    };
    refuses(&start, &[], "beyond");
    let odd = Header {
        size: 1000,
        ..good.clone()
    };
    refuses(&odd, &[], "sectors");
    let none = Header {
        block_size: 0,
        ..good.clone()
    };
    refuses(&none, &[], "sectors");
    let full = Header {
        data: (1 << 20) + 512,
        ..good.clone()
    };
    refuses(&full, &[], "do not fit");
    let long = Header {
        name: "x".repeat(MAX_HEADER),
        ..good.clone()
    };
    refuses(&long, &[], "too long");
    // The end of a volume need not be that of a block.
    let odd = Header {
        size: (1 << 20) + 512,
        ..good
    };
    read(write(&odd, &[discard(1 << 20, 512)]).as_slice()).unwrap();
}

#[test]
fn nothing_follows_a_failed_write() {
    let mut small = [0; 700];
    let mut writer = Writer::new(&mut small[..], &header(1 << 20, 4096, 4096)).unwrap();
    let Err(Error::Io(..)) = writer.data(0, &Numbers(2).bytes(4096)) else {
        panic!("written into a full file");
    };
    assert!(matches!(writer.discard(8192, 4096), Err(Error::Refused(_))));
}
