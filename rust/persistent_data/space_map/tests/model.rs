// SPDX-License-Identifier: GPL-2.0

//! Random changes, on both maps and on a model of them.

use std::collections::{
    BTreeMap,
    BTreeSet, //
};

use proptest::prelude::*;

use super::world::{
    World,
    USER_VALIDATOR, //
};
use crate::{
    block::{
        BlockNr,
        BlockRange, //
    },
    block_manager::Guard,
    memory::MemoryBm,
    transaction::Transaction,
    Error,
    Result, //
};

/// What the space maps should say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Model {
    /// The counts of all data blocks.
    pub(super) data: Vec<u32>,
    /// The references that the test has to metadata blocks; none is zero.
    pub(super) users: BTreeMap<BlockNr, u32>,
    pub(super) nr_metadata: BlockNr,
}

/// One step. Numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    NewData(u8),
    /// Only blocks whose number is no multiple of this are usable.
    NewUsableData(u8, u8),
    /// A run of so many blocks at most, usable as above; so many of its last ones are put back.
    NewDataRun(u32, u64, u64),
    FindFreeData(u32, u16),
    IncData(u32, u16),
    DecData(u32, u16),
    SetData(u32, u32),
    ExtendData(u16),
    NewUsers(u8),
    IncUser(u8),
    DecUser(u8),
    ShadowUser(u8),
    ExtendMetadata(u16),
    DropCache,
    Commit,
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let many = prop_oneof![1..4u16, 1..600u16, Just(17000u16)];
    let count = prop_oneof![0..5u32, Just(u32::MAX)];
    prop_oneof![
        4 => (1..20u8).prop_map(Op::NewData),
        1 => (1..20u8, 1..4u8).prop_map(|(n, m)| Op::NewUsableData(n, m)),
        2 => (1..200u32, 1..100u64, 0..300u64).prop_map(|(n, m, k)| Op::NewDataRun(n, m, k)),
        1 => (1..40000u32).prop_map(|n| Op::NewDataRun(n, 100_000, 0)),
        2 => (0..70000u32, many.clone()).prop_map(|(b, n)| Op::FindFreeData(b, n)),
        6 => (0..70000u32, many.clone()).prop_map(|(b, n)| Op::IncData(b, n)),
        6 => (0..70000u32, many.clone()).prop_map(|(b, n)| Op::DecData(b, n)),
        3 => (0..70000u32, count).prop_map(|(b, n)| Op::SetData(b, n)),
        1 => many.clone().prop_map(Op::ExtendData),
        4 => (1..20u8).prop_map(Op::NewUsers),
        6 => any::<u8>().prop_map(Op::IncUser),
        6 => any::<u8>().prop_map(Op::DecUser),
        4 => any::<u8>().prop_map(Op::ShadowUser),
        1 => many.prop_map(Op::ExtendMetadata),
        2 => Just(Op::DropCache),
        3 => Just(Op::Commit),
    ]
}

/// A world with its model.
pub(super) struct Checked {
    pub(super) world: World,
    pub(super) model: Model,
    pub(super) committed: Model,
    /// The data blocks that were handed out in this transaction.
    given: BTreeSet<BlockNr>,
    /// The data blocks that got references in this transaction otherwise. They may have been passed over.
    counted: BTreeSet<BlockNr>,
    /// The metadata blocks that were handed out in this transaction.
    given_metadata: BTreeSet<BlockNr>,
}

impl Checked {
    pub(super) fn new(nr_metadata: BlockNr, nr_data: BlockNr) -> Result<Self> {
        let model = Model {
            data: vec![0; nr_data as usize],
            users: BTreeMap::new(),
            nr_metadata,
        };
        Ok(Self {
            world: World::new(nr_metadata, nr_data)?,
            committed: model.clone(),
            model,
            given: BTreeSet::new(),
            counted: BTreeSet::new(),
            given_metadata: BTreeSet::new(),
        })
    }

    /// What `bm` holds should be `model`.
    pub(super) fn open(bm: MemoryBm, model: Model) -> Result<Self> {
        Self::begin(World::open(bm)?, model)
    }

    pub(super) fn roll_back(self) -> Result<Self> {
        Self::begin(self.world.roll_back()?, self.committed)
    }

    /// A world that was just opened and should be as `model`.
    pub(super) fn begin(world: World, model: Model) -> Result<Self> {
        let checked = Self {
            world,
            committed: model.clone(),
            model,
            given: BTreeSet::new(),
            counted: BTreeSet::new(),
            given_metadata: BTreeSet::new(),
        };
        checked.verify()?;
        Ok(checked)
    }

    fn data_range(&self, block: u32, n: u16) -> Option<BlockRange> {
        let len = self.model.data.len() as u64;
        let start = u64::from(block).checked_rem(len)?;
        Some(start..(start + u64::from(n)).min(len))
    }

    fn user(&self, i: u8) -> Option<BlockNr> {
        let i = usize::from(i).checked_rem(self.model.users.len())?;
        self.model.users.keys().nth(i).copied()
    }

    fn got_metadata(&mut self, block: BlockNr) {
        assert!(
            !self.committed.users.contains_key(&block),
            "block {block} was in use"
        );
        assert!(
            self.given_metadata.insert(block),
            "block {block} was handed out before"
        );
        assert_eq!(self.model.users.insert(block, 1), None);
    }

    fn drop_user(&mut self, block: BlockNr) {
        if let Some(count) = self.model.users.get_mut(&block) {
            *count -= 1;
            if *count == 0 {
                self.model.users.remove(&block);
            }
        }
    }

    /// Does it to the world, then to the model. An error is one of I/O, memory or space, and leaves the
    /// transaction broken.
    pub(super) fn apply(&mut self, op: Op) -> Result {
        match op {
            Op::NewData(n) => self.new_data(n, |_| true)?,
            Op::NewUsableData(n, m) => self.new_data(n, |b| !b.is_multiple_of(m.into()))?,
            Op::NewDataRun(n, m, back) => self.new_data_run(n, |b| !b.is_multiple_of(m), back)?,
            Op::FindFreeData(block, n) => {
                let Some(range) = self.data_range(block, n) else {
                    return Ok(());
                };
                let w = &mut self.world;
                let found = w.data.find_free(&w.bm, range.clone())?;
                let is_free = |b: &BlockNr| {
                    let i = *b as usize;
                    self.model.data[i] == 0 && self.committed.data.get(i) == Some(&0)
                };
                let first = range.clone().find(is_free);
                let expected =
                    first.map(|b| b..b + (b..range.end).take_while(is_free).count() as u64);
                assert_eq!(found, expected);
            }
            Op::IncData(block, n) => {
                let Some(range) = self.data_range(block, n) else {
                    return Ok(());
                };
                let counts = &mut self.model.data[range.start as usize..range.end as usize];
                if counts.contains(&u32::MAX) {
                    return Ok(());
                }
                let w = &mut self.world;
                w.data.inc(&mut w.tm.tx(&w.bm), range.clone())?;
                self.counted.extend(range);
                counts.iter_mut().for_each(|c| *c += 1);
            }
            Op::DecData(block, n) => {
                let Some(mut range) = self.data_range(block, n) else {
                    return Ok(());
                };
                // From the first that has a count on, as long as there are counts.
                let counts = &self.model.data;
                while range.start < range.end && counts[range.start as usize] == 0 {
                    range.start += 1;
                }
                let mut end = range.start;
                while end < range.end && counts[end as usize] > 0 {
                    end += 1;
                }
                range.end = end;
                let w = &mut self.world;
                let mut freed = Vec::new();
                w.data.dec(&mut w.tm.tx(&w.bm), range.clone(), &mut |run| {
                    freed.extend(run)
                })?;
                let mut expected = Vec::new();
                for b in range {
                    let count = &mut self.model.data[b as usize];
                    *count -= 1;
                    if *count == 0 {
                        expected.push(b);
                    }
                }
                assert_eq!(freed, expected);
            }
            Op::SetData(block, count) => {
                let Some(range) = self.data_range(block, 1) else {
                    return Ok(());
                };
                let w = &mut self.world;
                w.data.set_count(&mut w.tm.tx(&w.bm), range.start, count)?;
                self.model.data[range.start as usize] = count;
                self.counted.insert(range.start);
            }
            Op::ExtendData(n) => {
                let w = &mut self.world;
                w.data.extend(&mut w.tm.tx(&w.bm), n.into())?;
                let len = self.model.data.len() + usize::from(n);
                self.model.data.resize(len, 0);
            }
            Op::NewUsers(n) => {
                for _ in 0..n {
                    let block = self.world.new_user_block()?;
                    self.got_metadata(block);
                }
            }
            Op::IncUser(i) => {
                let Some(block) = self.user(i) else {
                    return Ok(());
                };
                self.world.tm.tx(&self.world.bm).inc(block..block + 1)?;
                *self.model.users.entry(block).or_default() += 1;
            }
            Op::DecUser(i) => {
                let Some(block) = self.user(i) else {
                    return Ok(());
                };
                self.world.tm.tx(&self.world.bm).dec(block..block + 1)?;
                self.drop_user(block);
            }
            Op::ShadowUser(i) => {
                let Some(block) = self.user(i) else {
                    return Ok(());
                };
                let mut tx = self.world.tm.tx(&self.world.bm);
                let shadow = tx.shadow(block, &USER_VALIDATOR)?;
                let new = shadow.guard.location();
                assert_eq!(shadow.was_shared, self.model.users[&block] > 1);
                drop(shadow);
                let in_place =
                    self.given_metadata.contains(&block) && self.model.users[&block] == 1;
                if in_place {
                    assert_eq!(new, block);
                } else {
                    self.drop_user(block);
                    self.got_metadata(new);
                }
            }
            Op::ExtendMetadata(n) => {
                let w = &mut self.world;
                // As on a device that grew before, also if the rest fails.
                let missing = (self.model.nr_metadata + u64::from(n))
                    .saturating_sub(crate::block_manager::BlockManager::nr_blocks(&w.bm));
                w.bm.grow(missing);
                w.tm.extend(&w.bm, n.into())?;
                self.model.nr_metadata += u64::from(n);
            }
            Op::DropCache => self.world.bm.drop_cache(),
            Op::Commit => self.commit()?,
        }
        Ok(())
    }

    fn new_data(&mut self, n: u8, is_usable: impl Fn(BlockNr) -> bool) -> Result {
        for _ in 0..n {
            let Self {
                world: w, counted, ..
            } = self;
            let mut usable = |b| {
                let usable = is_usable(b);
                if !usable {
                    counted.insert(b);
                }
                usable
            };
            let block = match w.data.new_block(&mut w.tm.tx(&w.bm), &mut usable) {
                // Nothing was done.
                Err(Error::NoSpace) if self.no_data_left() => break,
                result => result?,
            };
            let i = block as usize;
            assert!(is_usable(block));
            assert!(self.given.insert(block), "{block} was handed out before");
            assert_eq!(self.committed.data.get(i).copied().unwrap_or(0), 0);
            assert_eq!(self.model.data[i], 0);
            self.model.data[i] = 1;
        }
        Ok(())
    }

    fn new_data_run(
        &mut self,
        max: u32,
        is_usable: impl Fn(BlockNr) -> bool,
        nr_back: u64,
    ) -> Result {
        let Self {
            world: w, counted, ..
        } = self;
        let mut usable = |b| {
            let usable = is_usable(b);
            if !usable {
                counted.insert(b);
            }
            usable
        };
        let Some(run) = w.data.new_run(&mut w.tm.tx(&w.bm), max, &mut usable)? else {
            assert!(self.no_data_left());
            return Ok(());
        };
        assert!(!run.is_empty() && run.end - run.start <= u64::from(max));
        let back = run.end.saturating_sub(nr_back).max(run.start)..run.end;
        for block in run.clone() {
            let i = block as usize;
            assert!(is_usable(block));
            assert!(!self.given.contains(&block), "{block} was handed out");
            assert_eq!(self.committed.data.get(i).copied().unwrap_or(0), 0);
            assert_eq!(self.model.data[i], 0);
            if !back.contains(&block) {
                self.given.insert(block);
                self.model.data[i] = 1;
            }
        }
        if !back.is_empty() {
            let w = &mut self.world;
            w.data.put_back(&mut w.tm.tx(&w.bm), back)?;
        }
        Ok(())
    }

    pub(super) fn commit(&mut self) -> Result {
        self.world.commit()?;
        self.committed = self.model.clone();
        self.given.clear();
        self.counted.clear();
        self.given_metadata.clear();
        Ok(())
    }

    /// Whether there is no data block that must be handed out when asked.
    fn no_data_left(&self) -> bool {
        (0..self.model.data.len()).all(|b| {
            self.model.data[b] != 0
                || self.committed.data.get(b).is_some_and(|c| *c != 0)
                || self.given.contains(&(b as u64))
                || self.counted.contains(&(b as u64))
        })
    }

    /// Compares everything as of the last commit, right after it.
    pub(super) fn verify(&self) -> Result {
        let w = &self.world;
        let m = &self.committed;

        assert_eq!(w.data.nr_blocks(), m.data.len() as u64);
        let in_use = m.data.iter().filter(|c| **c != 0).count();
        assert_eq!(w.data.nr_free(), (m.data.len() - in_use) as u64);
        for (b, count) in m.data.iter().enumerate() {
            assert_eq!(w.data_count(b as u64)?, *count, "data block {b}");
        }

        let mut metadata = w.structure()?;
        for (b, count) in &metadata {
            assert_eq!(*count, 1, "block {b} of the structure is used twice");
        }
        for (b, count) in &m.users {
            assert_eq!(
                metadata.insert(*b, *count),
                None,
                "block {b} has two owners"
            );
        }
        assert_eq!(w.tm.nr_blocks(), m.nr_metadata);
        assert_eq!(w.tm.nr_free(), m.nr_metadata - metadata.len() as u64);
        for b in 0..m.nr_metadata {
            let count = metadata.get(&b).copied().unwrap_or(0);
            assert_eq!(w.metadata_count(b)?, count, "metadata block {b}");
        }

        let [big_metadata, big_data] = w.big_counts()?;
        metadata.retain(|_, count| *count > 2);
        assert_eq!(big_metadata, metadata);
        let big = m.data.iter().enumerate().filter(|(_, c)| **c > 2);
        assert!(big.map(|(b, c)| (b as u64, *c)).eq(big_data));
        Ok(())
    }
}

/// Applies all. If `may_fill` is set, metadata may run out, and is rolled back then.
fn run(nr_metadata: BlockNr, nr_data: BlockNr, ops: &[Op], may_fill: bool) -> Result {
    let mut c = Checked::new(nr_metadata, nr_data)?;
    for op in ops {
        match c.apply(*op) {
            Ok(()) => {
                if matches!(op, Op::Commit) {
                    c.verify()?;
                    c.world.bm.drop_cache();
                    c.verify()?;
                }
            }
            Err(Error::NoSpace) if may_fill => c = c.roll_back()?,
            Err(e) => return Err(e),
        }
    }
    let committed = c.committed.clone();
    let bm = c.world.bm.crash();
    drop(c);
    let mut c = Checked::open(bm, committed)?;
    c.commit()?;
    c.verify()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn both_maps_match_the_model(ops in prop::collection::vec(op(), 1..120)) {
        prop_assert_eq!(run(20000, 40000, &ops, false), Ok(()));
    }

    #[test]
    fn small_devices_match_the_model(
        nr_metadata in 30..120u64,
        nr_data in 0..50u64,
        ops in prop::collection::vec(op(), 1..200),
    ) {
        prop_assert_eq!(run(nr_metadata, nr_data, &ops, true), Ok(()));
    }
}

#[test]
fn counts_up_and_down() -> Result {
    let mut c = Checked::new(1000, 40000)?;
    for n in [40000u64, 30000, 20000, 16321, 500, 499] {
        let w = &mut c.world;
        w.data.inc(&mut w.tm.tx(&w.bm), 0..n)?;
        c.model.data[..n as usize].iter_mut().for_each(|x| *x += 1);
        c.commit()?;
        c.verify()?;
    }
    for n in [499u64, 500, 16321, 20000, 30000, 40000] {
        let w = &mut c.world;
        w.data.dec(&mut w.tm.tx(&w.bm), 0..n, &mut |_| ())?;
        c.model.data[..n as usize].iter_mut().for_each(|x| *x -= 1);
        c.commit()?;
        c.verify()?;
    }
    assert_eq!(c.world.data.nr_free(), 40000);
    Ok(())
}

#[test]
fn shares_metadata_blocks_widely() -> Result {
    // Enough great counts for the tree to be deep, and to split and merge nodes while it counts its own.
    let mut c = Checked::new(4000, 0)?;
    for _ in 0..1200 {
        c.apply(Op::NewUsers(1))?;
    }
    c.commit()?;
    let users: Vec<BlockNr> = c.model.users.keys().copied().collect();
    for round in 0..5 {
        for b in &users {
            c.world.tm.tx(&c.world.bm).inc(*b..*b + 1)?;
            *c.model.users.entry(*b).or_default() += 1;
        }
        if round % 2 == 0 {
            c.commit()?;
            c.verify()?;
        }
    }
    for step in [7usize, 3, 1] {
        for b in users.iter().step_by(step) {
            while c.model.users.contains_key(b) {
                c.world.tm.tx(&c.world.bm).dec(*b..*b + 1)?;
                c.drop_user(*b);
            }
        }
        c.commit()?;
        c.verify()?;
    }
    assert!(c.model.users.is_empty());
    Ok(())
}
