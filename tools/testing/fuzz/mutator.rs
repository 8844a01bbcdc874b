// SPDX-License-Identifier: GPL-2.0

//! How inputs are made up, and changed record by record.

use crate::{
    edit,
    input::{
        Record,
        HEADER,
        MAX_RECORDS,
        OPERATION,
        RECORD, //
    },
    program,
};

/// Random numbers, the same ones for a seed: splitmix64.
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31) ^ seed)
    }

    /// The next one.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// One below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.word() % n.max(1) as u64) as usize
    }
}

/// An edit.
pub fn edit(random: &mut Random) -> Record {
    Record {
        kind: random.below(usize::from(edit::KINDS) * 6) as u8,
        ..numbers(random)
    }
}

/// An operation.
pub fn operation(random: &mut Random) -> Record {
    Record {
        kind: OPERATION | random.below(program::KINDS.into()) as u8,
        ..numbers(random)
    }
}

/// Numbers of all sizes.
fn numbers(random: &mut Random) -> Record {
    let word = random.word();
    Record {
        kind: 0,
        a: match word & 3 {
            0 => (word >> 8) as u8 & 7,
            1 => 255 - ((word >> 8) as u8 & 3),
            _ => (word >> 8) as u8,
        },
        b: (word >> 16) as u16 >> (word >> 4 & 15),
        c: random.word() >> if word & 4 == 0 { 0 } else { word >> 32 & 63 },
    }
}

fn record(random: &mut Random) -> Record {
    match random.below(3) {
        0 => edit(random),
        _ => operation(random),
    }
}

/// Changes an input in place, of which `size` bytes are used; gives how many are now, at most `max`.
pub fn mutate(data: &mut [u8], size: usize, max: usize, seed: u32) -> usize {
    let random = &mut Random::new(seed.into());
    let max = max.min(data.len());
    if max < HEADER + RECORD {
        return size.min(max);
    }
    let mut header = [0; HEADER];
    let kept = size.min(HEADER);
    header[..kept].copy_from_slice(&data[..kept]);
    let mut records: Vec<[u8; RECORD]> = match data.get(HEADER..size) {
        Some(rest) => rest.as_chunks().0.to_vec(),
        None => Vec::new(),
    };
    for _ in 0..1 + random.below(3) {
        change(random, &mut header, &mut records);
    }
    records.truncate(MAX_RECORDS.min((max - HEADER) / RECORD));
    let bytes = [&header, records.as_flattened()].concat();
    data[..bytes.len()].copy_from_slice(&bytes);
    bytes.len()
}

fn change(random: &mut Random, header: &mut [u8; HEADER], records: &mut Vec<[u8; RECORD]>) {
    let at = random.below(records.len());
    let what = random.below(16);
    if records.is_empty() && what > 5 {
        return records.push(record(random).to_bytes());
    }
    match what {
        0 => header[0] = random.below(8) as u8,
        1 if random.below(4) == 0 => header[1] = random.word() as u8,
        1..=5 => {
            let at = random.below(records.len() + 1);
            records.insert(at, record(random).to_bytes());
        }
        6 => drop(records.remove(at)),
        7 => {
            let other = random.below(records.len());
            records.swap(at, other);
        }
        8 => {
            let copy = records[at];
            let other = random.below(records.len() + 1);
            records.insert(other, copy);
        }
        9 => records[at][0] = record(random).kind,
        10 => records[at][1..].copy_from_slice(&record(random).to_bytes()[1..]),
        11 => records[at][random.below(RECORD - 1) + 1] = random.word() as u8,
        12 => {
            let i = random.below(RECORD - 1) + 1;
            records[at][i] = records[at][i].wrapping_add(1);
        }
        13 => {
            let i = random.below(RECORD - 1) + 1;
            records[at][i] = records[at][i].wrapping_sub(1);
        }
        14 => {
            // A commit, or an abort, where there was none.
            let kind = OPERATION | [8, 10, 0, 6][random.below(4)];
            let record = Record {
                kind,
                ..record(random)
            };
            records.insert(at, record.to_bytes());
        }
        _ => records.truncate(at + 1),
    }
}
