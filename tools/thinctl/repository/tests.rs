// SPDX-License-Identifier: GPL-2.0

//! Backups beside a model of what they should have.

mod chain;
mod concurrent;
mod crash;
mod damage;
mod refusal;

use std::{
    collections::BTreeMap,
    path::Path, //
};

use tempfile::TempDir;

use super::{
    Fold,
    Kind,
    Locked,
    Repository, //
};
use crate::{
    error::Result,
    state::StateId,
    stream::{
        tests::Numbers,
        Changes,
        Header,
        Record,
        Writer, //
    },
};

const BLOCK: usize = 2048;
const SECTOR: usize = 512;

/// What a volume contains: of each block, what its content is made of.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Volume(Vec<Option<u64>>);

impl Volume {
    fn state(&self) -> StateId {
        StateId::new(*blake3::hash(format!("{self:?}").as_bytes()).as_bytes())
    }

    fn size(&self) -> u64 {
        (self.0.len() * BLOCK) as u64
    }

    fn content(seed: u64) -> Vec<u8> {
        match seed % 4 {
            0 => vec![seed as u8; BLOCK],
            _ => Numbers(seed).bytes(BLOCK),
        }
    }

    /// What leads here; data are cut anywhere.
    fn records(&self, from: Option<&Self>, numbers: &mut Numbers) -> Vec<Record> {
        let mut records = Vec::new();
        // Half of all streams have data in frames as long as may be.
        let whole = numbers.below(2) == 0;
        for (i, block) in self.0.iter().enumerate() {
            let old = from.and_then(|from| from.0.get(i).copied()).flatten();
            let offset = (i * BLOCK) as u64;
            let cut = !whole && numbers.below(3) == 0;
            match (block, records.last_mut()) {
                (block, _) if *block == old => {}
                (Some(seed), Some(Record::Data { offset: at, data }))
                    if *at + data.len() as u64 == offset && !cut =>
                {
                    data.extend(Self::content(*seed));
                }
                (Some(seed), _) => {
                    let data = Self::content(*seed);
                    if !whole && numbers.below(4) == 0 {
                        let (one, two) = data.split_at(SECTOR * (1 + numbers.below(3) as usize));
                        let (one, two) = (one.to_vec(), two.to_vec());
                        let middle = offset + one.len() as u64;
                        records.push(Record::Data { offset, data: one });
                        records.push(Record::Data {
                            offset: middle,
                            data: two,
                        });
                    } else {
                        records.push(Record::Data { offset, data });
                    }
                }
                (None, Some(Record::Discard { offset: at, len })) if *at + *len == offset => {
                    *len += BLOCK as u64;
                }
                (None, _) => records.push(Record::Discard {
                    offset,
                    len: BLOCK as u64,
                }),
            }
        }
        records
    }

    /// The stream that leads here.
    fn stream(&self, from: Option<&Self>, numbers: &mut Numbers) -> Vec<u8> {
        let records = self.records(from, numbers);
        let data = records.iter().map(|record| match record {
            Record::Data { data, .. } => data.len() as u64,
            Record::Discard { .. } => 0,
        });
        let header = Header {
            size: self.size(),
            // It may come from another pool than the one before.
            block_size: 512 << numbers.below(3),
            to: self.state(),
            from: from.map(Self::state),
            start: 0,
            data: data.sum(),
            name: "vg/volume".into(),
            time: 1,
        };
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, &header).unwrap();
        for record in records {
            writer.record(&record).unwrap();
        }
        writer.finish().unwrap();
        bytes
    }

    /// Changes blocks, and perhaps the size.
    fn change(&mut self, changes: &[(u8, u8)], grow: u8, seed: u64) {
        let len = self.0.len() + usize::from(grow);
        self.0.resize(len, None);
        for (n, (block, kind)) in changes.iter().enumerate() {
            let i = usize::from(*block) % len;
            let seed = seed * 1000 + n as u64;
            match kind % 8 {
                0 | 1 => self.0[i] = None,
                2 => self.0[i..(i + 7).min(len)].fill(None),
                3 => self.0[i..(i + 5).min(len)].fill(Some(seed)),
                _ => self.0[i] = Some(seed),
            }
        }
    }

    /// Whether a restored volume is this one.
    #[track_caller]
    fn check(&self, mut fold: Fold) {
        let header = fold.header().clone();
        assert_eq!(
            (header.size, header.to, header.from, header.start),
            (self.size(), self.state(), None, 0)
        );
        let mut sectors = vec![None; self.0.len() * (BLOCK / SECTOR)];
        let (mut end, mut sum) = (0, 0);
        while let Some(record) = fold.next().unwrap() {
            let Record::Data { offset, data } = record else {
                panic!("a discard in what starts from nothing");
            };
            assert!(offset >= end);
            end = offset + data.len() as u64;
            sum += data.len() as u64;
            for (i, sector) in data.chunks(SECTOR).enumerate() {
                sectors[offset as usize / SECTOR + i] = Some(sector.to_vec());
            }
        }
        assert_eq!(sum, header.data);
        for (i, block) in self.0.iter().enumerate() {
            let here: Vec<_> = sectors.drain(..BLOCK / SECTOR).collect();
            match block {
                None => assert!(here.iter().all(Option::is_none), "block {i}"),
                Some(seed) => {
                    let here: Option<Vec<_>> = here.into_iter().collect();
                    let here = here.map(|sectors| sectors.concat());
                    assert!(here == Some(Self::content(*seed)), "block {i}");
                }
            }
        }
    }
}

/// Where tests put repositories: in memory, as they sync a lot.
fn scratch() -> TempDir {
    TempDir::new_in("/dev/shm")
        .or_else(|_| TempDir::new())
        .unwrap()
}

fn nothing(_: u64) -> Result {
    Ok(())
}

fn add(locked: &Locked, stream: &[u8]) -> Result<super::Generation> {
    locked.add("vol", None, |w| {
        w.write_all(stream)
            .map_err(crate::error::Error::io("writing"))
    })
}

/// A repository with generations 1 to 5 of a volume, of which the fourth is full if asked for; and what is in them.
fn five(root: &Path, fourth_full: bool) -> BTreeMap<u64, Volume> {
    let locked = Repository::create(root).unwrap().lock().unwrap();
    let mut numbers = Numbers(5);
    let mut volume = Volume(vec![None; 40]);
    let mut last = None;
    let mut all = BTreeMap::new();
    for number in 1..=5 {
        let changes: Vec<_> = (0..12)
            .map(|_| (numbers.next() as u8, numbers.next() as u8))
            .collect();
        volume.change(&changes, u8::from(number == 3), number);
        let from = last.as_ref().filter(|_| number != 4 || !fourth_full);
        let generation = add(&locked, &volume.stream(from, &mut numbers)).unwrap();
        assert_eq!(generation.number, number);
        assert_eq!(generation.kind == Kind::Full, from.is_none());
        all.insert(number, volume.clone());
        last = Some(volume.clone());
    }
    all
}

/// All generations that are there, compared with what they should have.
#[track_caller]
fn check(repository: &Repository, all: &BTreeMap<u64, Volume>) -> Vec<u64> {
    let generations = repository.generations("vol").unwrap();
    for generation in &generations {
        let fold = repository.restore("vol", Some(generation.number)).unwrap();
        all[&generation.number].check(fold);
    }
    generations.iter().map(|one| one.number).collect()
}
