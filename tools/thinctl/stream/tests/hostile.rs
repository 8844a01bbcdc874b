// SPDX-License-Identifier: GPL-2.0

//! Streams that are wrong.

use std::io::{
    self,
    Read, //
};

use super::{
    header,
    read,
    refused,
    small,
    split,
    write,
    Numbers, //
};
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
        MAX_DATA, //
    },
};

#[test]
fn every_flipped_bit_is_refused() {
    let good = small();
    assert_eq!(read(good.as_slice()).unwrap().len(), 4);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        refused(&bad, &format!("bit {bit}"));
        // Nothing is handed out of the frame that it is in, or of those behind it.
        let mut at = 0;
        let parts = split(&good);
        let before = parts.iter().take_while(|part| {
            at += part.len();
            at <= bit / 8
        });
        let before = before.count();
        let mut given = 0;
        match Reader::new(bad.as_slice()) {
            Ok(mut reader) => {
                while reader.next().is_ok_and(|record| record.is_some()) {
                    given += 1;
                }
                assert!(matches!(reader.next(), Err(Error::Damaged(_))), "bit {bit}");
                assert_eq!(given + 2, before, "bit {bit}");
            }
            Err(e) => {
                assert!(before < 2, "bit {bit}");
                assert_eq!(e.to_string().contains("at byte 0:"), before == 0, "{e}");
            }
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    let good = small();
    for len in 0..good.len() {
        refused(&good[..len], &format!("{len} bytes"));
        // More must not be asked for to find that out.
        let mut zeroes = good[..len].chain(io::repeat(0)).take(good.len() as u64);
        let mut bytes = Vec::new();
        zeroes.read_to_end(&mut bytes).unwrap();
        if bytes != good {
            refused(&bytes, &format!("{len} bytes, and zeroes"));
        }
    }
}

#[test]
fn frames_that_move_are_refused() {
    let good = split(&small());
    assert_eq!(good.len(), 7);
    assert_eq!(good.concat(), small());
    for i in 0..good.len() {
        let mut bad = good.clone();
        bad.remove(i);
        refused(&bad.concat(), &format!("without part {i}"));
        for j in 0..good.len() {
            let mut bad = good.clone();
            bad.insert(j, good[i].clone());
            // Twice the same side by side may leave the stream as it was, with something behind it.
            if !bad.concat().starts_with(&small()) {
                refused(&bad.concat(), &format!("part {i} twice, also at {j}"));
            }
            let mut bad = good.clone();
            bad.swap(i, j);
            if i != j {
                refused(&bad.concat(), &format!("{i} and {j} swapped"));
            }
        }
    }
}

#[test]
fn frames_of_other_streams_are_refused() {
    let records = [Record::Data {
        offset: 0,
        data: vec![7; 1024],
    }];
    let one = header(1 << 20, 4096, 1024);
    let others = [
        Header {
            to: StateId::new([9; 32]),
            ..one.clone()
        },
        Header {
            from: None,
            ..one.clone()
        },
        Header {
            time: one.time + 1,
            ..one.clone()
        },
    ];
    let one = split(&write(&one, &records));
    for other in others {
        let other = split(&write(&other, &records));
        for i in 1..one.len() {
            let mut bad = one.clone();
            bad[i].clone_from(&other[i]);
            refused(&bad.concat(), &format!("part {i} of another"));
        }
    }
}

/// Puts the checksums right, by what the documentation of the format says.
fn seal(frames: &mut [Vec<u8>], digest: bool) {
    let mut seed = 0;
    let mut hasher = blake3::Hasher::new();
    for (i, frame) in frames.iter_mut().enumerate() {
        if i == 0 {
            if frame.len() == 16 {
                seed = crc32c::crc32c(&frame[..12]);
                frame[12..].copy_from_slice(&seed.to_le_bytes());
            }
            hasher.update(frame);
            continue;
        }
        if frame.len() < 40 {
            hasher.update(frame);
            continue;
        }
        if digest && frame[0] == 4 && frame.len() == 104 {
            frame[72..].copy_from_slice(hasher.finalize().as_bytes());
        }
        let crc = crc32c::crc32c_append(seed, &frame[..32]);
        frame[32..36].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &frame[40..]);
        frame[36..40].copy_from_slice(&crc.to_le_bytes());
        hasher.update(frame);
        if i == 1 {
            seed = u32::from_le_bytes(hasher.finalize().as_bytes()[..4].try_into().unwrap());
        }
    }
}

#[test]
fn sealing_changes_nothing_that_is_right() {
    let mut frames = split(&small());
    seal(&mut frames, true);
    assert_eq!(frames.concat(), small());
}

/// Each frame of the small stream with something else in it, and right checksums.
#[track_caller]
fn altered(part: usize, message: &str, alter: impl FnOnce(&mut Vec<u8>)) {
    let mut frames = split(&small());
    alter(&mut frames[part]);
    seal(&mut frames, true);
    match read(frames.concat().chain(io::repeat(0xff))) {
        Err(Error::Damaged(said)) => assert!(said.contains(message), "{said}"),
        other => panic!("{message}: {:?}", other.map(|records| records.len())),
    }
}

trait Concat {
    fn chain<R: Read>(self, r: R) -> io::Chain<io::Cursor<Vec<u8>>, R>;
}

impl Concat for Vec<u8> {
    fn chain<R: Read>(self, r: R) -> io::Chain<io::Cursor<Vec<u8>>, R> {
        Read::chain(io::Cursor::new(self), r)
    }
}

fn put(at: usize, n: u64) -> impl FnOnce(&mut Vec<u8>) {
    move |frame| frame[at..at + 8].copy_from_slice(&n.to_le_bytes())
}

fn put32(at: usize, n: u32) -> impl FnOnce(&mut Vec<u8>) {
    move |frame| frame[at..at + 4].copy_from_slice(&n.to_le_bytes())
}

fn put8(at: usize, n: u8) -> impl FnOnce(&mut Vec<u8>) {
    move |frame| frame[at] = n
}

#[test]
fn checksums_do_not_make_it_right() {
    altered(0, "no stream", put8(1, b'X'));
    altered(0, "version 2", put32(8, 2));
    altered(1, "too long", put32(4, u32::MAX));
    altered(1, "does not begin with a header", put8(0, 2));
    altered(1, "does not begin with a header", put(8, 1));
    altered(1, "the header is none", put8(40, b'x'));
    altered(2, "kind 5", put8(0, 5));
    altered(2, "second header", put8(0, 1));
    altered(2, "encoding 2", put8(1, 2));
    altered(2, "unused", put8(3, 1));
    altered(2, "frame 2 instead of 1", put(8, 2));
    altered(2, "do not stand for", put8(1, 0));
    altered(2, "do not stand for", put32(4, u32::MAX));
    altered(2, "do not stand for", put(24, 1 << 40));
    altered(2, "do not stand for", put(24, MAX_DATA as u64 + 512));
    altered(2, "not made of", put(24, 1023));
    altered(2, "not inside", put(16, 1 << 20));
    altered(2, "not inside", put(16, u64::MAX));
    altered(2, "of data instead of", put(24, 2048));
    altered(2, "decompress", put(24, 512));
    altered(2, "not one frame", |frame| {
        frame.push(0);
        let stored = frame.len() as u32 - 40;
        frame[4..8].copy_from_slice(&stored.to_le_bytes());
    });
    altered(3, "do not stand for", put8(1, 1));
    altered(3, "too late", put(16, 512));
    altered(4, "wrong for this kind", put8(1, 1));
    altered(4, "wrong for this kind", put32(4, 1));
    altered(4, "not made of", put(16, 4608));
    altered(4, "empty", put(24, 0));
    altered(6, "has an offset", put(16, 512));
    altered(6, "counts", put(40, 4));
    altered(6, "counts", put(48, 4));
    altered(6, "counts", put(56, 4));
    altered(6, "counts", put(64, 4));
    altered(6, "wrong for this kind", put32(4, 65));
}

#[test]
fn the_digest_counts() {
    let mut frames = split(&small());
    frames[3][100] ^= 1;
    seal(&mut frames, false);
    refused(&frames.concat(), "changed data");
}

#[test]
fn announced_data_must_come() {
    let mut frames = split(&small());
    let json = String::from_utf8(frames[1][40..].to_vec()).unwrap();
    assert!(json.contains("\"data\":2048"), "{json}");
    let json = json.replace("\"data\":2048", "\"data\":1536");
    frames[1].truncate(40);
    frames[1].extend_from_slice(json.as_bytes());
    seal(&mut frames, true);
    match read(frames.concat().as_slice()) {
        Err(Error::Damaged(said)) => assert!(said.contains("announced"), "{said}"),
        other => panic!("{:?}", other.map(|records| records.len())),
    }
}

/// What can be relied on whatever a stream contains; gives whether it was right.
fn stands(bytes: &[u8]) -> bool {
    let walk = || -> Result {
        let mut reader = Reader::new(bytes)?;
        let Header { size, start, .. } = *reader.header();
        let mut at = start;
        while let Some(record) = reader.next()? {
            let (offset, len) = match &record {
                Record::Data { offset, data } => {
                    assert!(data.len() <= MAX_DATA);
                    (*offset, data.len() as u64)
                }
                Record::Discard { offset, len } => (*offset, *len),
            };
            assert!(offset >= at && len > 0 && offset % 512 == 0 && len % 512 == 0);
            at = offset + len;
            assert!(at <= size);
        }
        assert_eq!(reader.totals().unwrap().stored, reader.position());
        Ok(())
    };
    match walk() {
        Ok(()) => true,
        Err(Error::Damaged(_)) => false,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn any_bytes() {
    let mut numbers = Numbers(1);
    let whole = split(&small());
    for _ in 0..20_000 {
        let len = numbers.below(300) as usize;
        let mut bytes = whole[..numbers.below(3) as usize].concat();
        bytes.extend(numbers.bytes(len));
        assert!(!stands(&bytes));
    }
}

/// Streams with a few changes anywhere, and right checksums.
#[test]
fn mutated_streams() {
    let mut numbers = Numbers(2);
    let whole = split(&small());
    let mut right = 0;
    for _ in 0..100_000 {
        let mut frames = whole.clone();
        for _ in 0..=numbers.below(3) {
            mutate(&mut frames, &mut numbers);
        }
        seal(&mut frames, numbers.below(4) != 0);
        let bytes = frames.concat();
        if stands(&bytes) && bytes != small() {
            right += 1;
        }
    }
    // Some changes are harmless; without any, it would not have got far.
    assert!((500..50_000).contains(&right), "{right}");
}

fn mutate(frames: &mut Vec<Vec<u8>>, numbers: &mut Numbers) {
    let pick = |numbers: &mut Numbers, n: usize| numbers.below(n as u64) as usize;
    let i = pick(numbers, frames.len());
    let j = pick(numbers, frames.len());
    match numbers.below(10) {
        0 => drop(frames.remove(i)),
        1 => frames.swap(i, j),
        2 => {
            let frame = frames[i].clone();
            frames.insert(j, frame);
        }
        3 => {
            let len = pick(numbers, frames[i].len() + 1);
            frames[i].truncate(len);
        }
        // A field of a head, or what is around it.
        4 | 5 => {
            let at = [0, 1, 2, 4, 8, 16, 24, 40, 48, 56, 64][pick(numbers, 11)];
            let n = match numbers.below(4) {
                0 => numbers.below(8),
                1 => numbers.below(1 << 12) * 512,
                2 => u64::MAX - numbers.below(1024),
                _ => numbers.next() >> numbers.below(64),
            };
            let width = if at < 8 { 1 << numbers.below(2) } else { 8 };
            let end = frames[i].len();
            if at + width <= end {
                frames[i][at..at + width].copy_from_slice(&n.to_le_bytes()[..width]);
            }
        }
        // A payload of another length, which the head knows of.
        6 => {
            let more = pick(numbers, 600);
            let bytes = numbers.bytes(more);
            let frame = &mut frames[i];
            frame.extend(bytes);
            if frame.len() >= 40 {
                let stored = frame.len() as u32 - 40;
                frame[4..8].copy_from_slice(&stored.to_le_bytes());
            }
        }
        // Digits of the header.
        7 => {
            if let Some(frame) = frames.get_mut(1) {
                let digits: Vec<_> = (40..frame.len())
                    .filter(|at| frame[*at].is_ascii_digit())
                    .collect();
                if !digits.is_empty() {
                    frame[digits[pick(numbers, digits.len())]] = b'0' + numbers.below(10) as u8;
                }
            }
        }
        _ => {
            let frame = &mut frames[i];
            if !frame.is_empty() {
                let at = pick(numbers, frame.len());
                frame[at] ^= 1 << numbers.below(8);
            }
        }
    }
    if frames.is_empty() {
        frames.push(Vec::new());
    }
}
