// SPDX-License-Identifier: GPL-2.0

//! Random changes, against the model.

use std::collections::{
    BTreeMap,
    BTreeSet, //
};

use persistent_data::memory::MemoryBm;
use proptest::prelude::*;

use super::{
    check_with_tools,
    model::{
        id,
        Model, //
    },
    no_flush,
    pool,
    reopen,
    steps::{
        take_steps,
        NR_STEPS, //
    }, //
};
use crate::{
    Error,
    Freed,
    Metadata,
    ThinHandle, //
};

const NR_METADATA: u64 = 384;
const NR_DATA: u64 = 1500;

#[derive(Clone, Debug)]
enum Op {
    Create(u64),
    Snap(u64, u64),
    Delete(u64),
    Open(u64),
    Close(u64),
    Insert(u64, u64, u64),
    /// Maps so many blocks from one on, at a distance, together; so many data blocks more are taken, and put back.
    InsertTogether(u64, u64, u64, u64, u64),
    Remove(u64, u64, u64),
    References(u64, u64),
    TransactionId(u64),
    ResizeData(u64),
    ResizeMetadata(u64),
    Reserve,
    Release,
    Commit,
    /// So many steps of a commit, and then.
    Steps(usize, Then),
    Abort,
    Reopen,
    Crash,
}

/// What happens after some steps of a commit.
#[derive(Clone, Copy, Debug)]
enum Then {
    Commit,
    Abort,
    Crash,
}

fn then() -> impl Strategy<Value = Then> {
    prop_oneof![
        2 => Just(Then::Commit),
        1 => Just(Then::Abort),
        1 => Just(Then::Crash),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let dev = || 0..5_u64;
    let virtual_block = || prop_oneof![4 => 0..800_u64, 1 => (1 << 40)..(1 << 40) + 50_u64];
    let op = prop_oneof![
        3 => dev().prop_map(Op::Create),
        3 => (dev(), dev()).prop_map(|(a, b)| Op::Snap(a, b)),
        1 => dev().prop_map(Op::Delete),
        1 => dev().prop_map(Op::Open),
        1 => dev().prop_map(Op::Close),
        10 => (dev(), virtual_block(), 1..200_u64).prop_map(|(a, b, c)| Op::Insert(a, b, c)),
        6 => (dev(), virtual_block(), 1..200_u64, 1..5_u64, 0..9_u64)
            .prop_map(|(a, b, c, d, e)| Op::InsertTogether(a, b, c, d, e)),
        4 => (dev(), virtual_block(), 0..400_u64).prop_map(|(a, b, c)| Op::Remove(a, b, c)),
        1 => (0..NR_DATA, 0..50_u64).prop_map(|(a, b)| Op::References(a, b)),
        1 => any::<u64>().prop_map(Op::TransactionId),
        1 => (0..100_u64).prop_map(Op::ResizeData),
        1 => (0..20_u64).prop_map(Op::ResizeMetadata),
        1 => Just(Op::Reserve),
        1 => Just(Op::Release),
        3 => Just(Op::Commit),
        2 => (1..=NR_STEPS, then()).prop_map(|(n, then)| Op::Steps(n, then)),
        1 => Just(Op::Abort),
        1 => Just(Op::Reopen),
        1 => Just(Op::Crash),
    ];
    proptest::collection::vec(op, 1..50)
}

struct State {
    md: Metadata<MemoryBm>,
    model: Model,
    committed: Model,
    /// Devices that are kept open.
    open: BTreeMap<u64, ThinHandle>,
    /// Devices that were changed since the last commit.
    changed: BTreeSet<u64>,
    /// Devices that were changed, and then an abort came, while they are kept open.
    aborted: BTreeSet<u64>,
    /// Data blocks that were taken since the last commit, for which they are not taken again, also if they were freed.
    taken: BTreeSet<u64>,
}

impl State {
    fn new() -> Self {
        let model = Model::new(NR_DATA);
        Self {
            md: pool(NR_METADATA, NR_DATA),
            committed: model.clone(),
            model,
            open: BTreeMap::new(),
            changed: BTreeSet::new(),
            aborted: BTreeSet::new(),
            taken: BTreeSet::new(),
        }
    }

    /// A transaction begins.
    fn begin(&mut self) {
        self.changed.clear();
        self.taken.clear();
    }

    /// The blocks that cannot be taken before the next commit.
    fn not_to_be_had(&self) -> BTreeSet<u64> {
        let mut blocks = self.committed.used();
        blocks.extend(self.model.used());
        blocks.extend(&self.taken);
        blocks
    }

    fn exists(&self, dev: u64) -> bool {
        self.model.pool.devices.contains_key(&dev)
    }

    /// Checks that the blocks that a change was said to have freed are those that were `used` before and are not now.
    fn check_all_freed(&self, used: &BTreeSet<u64>, freed: &[Freed]) {
        let said: Vec<_> = freed.iter().flat_map(|f| f.blocks.clone()).collect();
        let nr_said = said.len();
        let said: BTreeSet<_> = said.into_iter().collect();
        assert_eq!(said.len(), nr_said, "a block was freed twice");
        assert_eq!(said, used - &self.model.used());
    }

    /// As [`check_all_freed`](Self::check_all_freed), where somebody may want all of them after a crash.
    fn check_freed_and_wanted(&self, used: &BTreeSet<u64>, freed: &[Freed]) {
        self.check_all_freed(used, freed);
        assert!(freed.iter().all(|f| f.maybe_shared));
    }

    /// As [`check_all_freed`](Self::check_all_freed), where `dev` does not want them after a crash.
    fn check_freed(&self, dev: u64, used: &BTreeSet<u64>, freed: &[Freed]) {
        self.check_all_freed(used, freed);

        // A crash must not find anybody else in need of what was not shared.
        let mut others = self.committed.clone();
        others.pool.devices.remove(&dev);
        let wanted = others.used();
        for f in freed.iter().filter(|f| !f.maybe_shared) {
            let is_wanted = wanted.range(f.blocks.clone()).next().is_some();
            assert!(!is_wanted, "{f:?} is shared");
        }
    }

    fn apply(&mut self, op: &Op) {
        match self.try_apply(op) {
            Ok(()) => {}
            Err(Error::NoMetadataSpace) => {
                assert!(self.md.needs_abort());
                self.abort();
            }
            Err(e) => panic!("{op:?}: {e}"),
        }
        let changed = !self.changed.is_empty();
        assert_eq!(self.md.changed_this_transaction(), changed);
    }

    fn try_apply(&mut self, op: &Op) -> crate::Result {
        let Self { md, model, .. } = self;
        match *op {
            Op::Create(dev) => match md.create_thin(id(dev)) {
                Err(Error::DeviceExists(_)) => assert!(self.exists(dev)),
                result => {
                    result?;
                    model.create(dev);
                    self.changed.insert(dev);
                }
            },
            Op::Snap(dev, origin) => match md.create_snap(id(dev), id(origin)) {
                Err(Error::DeviceExists(_)) => assert!(self.exists(dev)),
                Err(Error::NoDevice(_)) => assert!(!self.exists(origin)),
                result => {
                    result?;
                    model.snap(dev, origin);
                    self.changed.extend([dev, origin]);
                }
            },
            Op::Delete(dev) => {
                let mut freed = Vec::new();
                match md.delete_thin(id(dev), &mut |f| freed.push(f)) {
                    Err(Error::NoDevice(_)) => assert!(!self.exists(dev)),
                    Err(Error::DeviceOpen(_)) => assert!(self.open.contains_key(&dev)),
                    result => {
                        result?;
                        let used = model.used();
                        model.pool.devices.remove(&dev);
                        self.changed.remove(&dev);
                        self.check_freed_and_wanted(&used, &freed);
                    }
                }
            }
            Op::Open(dev) => {
                if self.exists(dev) && !self.open.contains_key(&dev) {
                    self.open.insert(dev, self.md.open_thin(id(dev))?);
                }
            }
            Op::Close(dev) => {
                if let Some(thin) = self.open.remove(&dev) {
                    assert_eq!(md.thin_aborted_changes(&thin), self.aborted.remove(&dev));
                    md.close_thin(&thin);
                }
            }
            Op::Insert(dev, begin, count) => {
                if self.exists(dev) {
                    let thin = self.md.open_thin(id(dev))?;
                    let result = self.insert(dev, &thin, begin..begin + count);
                    self.md.close_thin(&thin);
                    result?;
                }
            }
            Op::InsertTogether(dev, begin, count, distance, surplus) => {
                if self.exists(dev) {
                    let thin = self.md.open_thin(id(dev))?;
                    let blocks = (0..count).map(|n| begin + n * distance);
                    let result = self.insert_together(dev, &thin, blocks.collect(), surplus);
                    self.md.close_thin(&thin);
                    result?;
                }
            }
            Op::Remove(dev, begin, count) => {
                if let Some(device) = model.pool.devices.get(&dev) {
                    let end = begin + count;
                    if device.mappings.range(begin..end).next().is_some() {
                        self.changed.insert(dev);
                    }
                    let thin = md.open_thin(id(dev))?;
                    let mut freed = Vec::new();
                    let result = md.remove_range(&thin, begin, end, &mut |f| freed.push(f));
                    md.close_thin(&thin);
                    result?;
                    let used = model.used();
                    model.remove(dev, begin, end);
                    self.check_freed(dev, &used, &freed);
                }
            }
            Op::References(begin, count) => {
                let end = begin + count;
                match md.inc_data_range(begin, end) {
                    Err(Error::BadBlocks { .. }) => assert!(end > model.pool.nr_data),
                    result => {
                        result?;
                        if count > 0 && model.used().contains(&begin) {
                            assert_eq!(md.block_is_shared(begin), Ok(true));
                        }
                        md.dec_data_range(begin, end)?;
                    }
                }
            }
            Op::TransactionId(new) => {
                let found = model.pool.transaction_id;
                let wrong = found.wrapping_add(1);
                assert_eq!(
                    md.set_transaction_id(wrong, new),
                    Err(Error::TransactionId {
                        found,
                        wanted: wrong
                    })
                );
                md.set_transaction_id(found, new)?;
                model.pool.transaction_id = new;
            }
            Op::ResizeData(extra) => {
                let new = model.pool.nr_data + extra;
                md.resize_data(new)?;
                model.pool.nr_data = new;
                self.commit()?;
            }
            Op::ResizeMetadata(extra) => {
                let old = md.nr_metadata_blocks()?;
                md.bm.grow(extra);
                md.resize_metadata(old + extra)?;
                self.commit()?;
            }
            Op::Reserve => match md.reserve_metadata_snap(no_flush) {
                Err(Error::SnapHeld(_)) => assert!(model.held.is_some()),
                result => {
                    result?;
                    self.committed = model.clone();
                    model.held = model.pool.held();
                    self.begin();
                }
            },
            Op::Release => {
                let mut freed = Vec::new();
                match md.release_metadata_snap(&mut |f| freed.push(f)) {
                    Err(Error::NoSnap) => assert!(model.held.is_none()),
                    result => {
                        result?;
                        let used = model.used();
                        model.held = None;
                        self.check_freed_and_wanted(&used, &freed);
                    }
                }
            }
            Op::Commit => self.commit()?,
            Op::Steps(n, then) => {
                if !md.prepare_commit()? {
                    return Ok(());
                }
                take_steps(md, n)?;
                model.check(md);
                if n < NR_STEPS {
                    assert_eq!(md.create_thin(id(9)), Err(Error::Prepared));
                }
                // The superblock is stable after the last but one.
                if n + 1 >= NR_STEPS {
                    self.committed = model.clone();
                }
                if n == NR_STEPS {
                    self.begin();
                }
                match then {
                    Then::Commit => self.commit()?,
                    Then::Abort => self.abort(),
                    Then::Crash => self.reopen(),
                }
            }
            Op::Abort => self.abort(),
            Op::Reopen => {
                for (_, thin) in std::mem::take(&mut self.open) {
                    md.close_thin(&thin);
                }
                md.close(no_flush)?;
                self.committed = self.model.clone();
                self.reopen();
            }
            Op::Crash => self.reopen(),
        }
        Ok(())
    }

    fn insert(
        &mut self,
        dev: u64,
        thin: &ThinHandle,
        blocks: std::ops::Range<u64>,
    ) -> crate::Result {
        for virtual_block in blocks {
            // A block may be taken if neither the last commit nor this transaction use it.
            let block = match self.md.alloc_data_block(&mut |_| true) {
                Err(Error::NoDataSpace) => {
                    assert_eq!(self.not_to_be_had().len() as u64, self.model.pool.nr_data);
                    return Ok(());
                }
                result => result?,
            };
            assert!(self.taken.insert(block));
            assert!(!self.committed.used().contains(&block));
            let used = self.model.used();
            assert!(!used.contains(&block));
            let mut freed = Vec::new();
            self.md
                .insert_block(thin, virtual_block, block, &mut |f| freed.push(f))?;
            self.model.insert(dev, virtual_block, block);
            self.check_freed_and_wanted(&used, &freed);
            self.changed.insert(dev);
        }
        Ok(())
    }

    fn insert_together(
        &mut self,
        dev: u64,
        thin: &ThinHandle,
        blocks: Vec<u64>,
        surplus: u64,
    ) -> crate::Result {
        let wanted = blocks.len() as u64 + surplus;
        let mut data = Vec::new();
        let result = self
            .md
            .alloc_data_blocks(wanted as u32, &mut |_| true, &mut |run| data.extend(run));
        let nr = match result {
            Err(Error::NoDataSpace) => 0,
            result => result?,
        };
        assert_eq!(nr as usize, data.len());
        if (nr as u64) < wanted {
            let mut blocks = self.not_to_be_had();
            blocks.extend(&data);
            assert_eq!(blocks.len() as u64, self.model.pool.nr_data);
        }
        let free = self.md.free_data_blocks()?;
        let (used, unused) = data.split_at(data.len().min(blocks.len()));
        for block in unused {
            self.md.put_back_data_blocks(*block..*block + 1)?;
        }
        assert_eq!(self.md.free_data_blocks()?, free + unused.len() as u64);

        for block in used {
            assert!(self.taken.insert(*block));
        }

        let pairs: Vec<_> = blocks.into_iter().zip(used.iter().copied()).collect();
        for (_, block) in &pairs {
            assert!(!self.committed.used().contains(block));
            assert!(!self.model.used().contains(block));
        }
        let mut freed = Vec::new();
        self.md
            .insert_blocks(thin, &pairs, &mut |f| freed.push(f))?;
        let used = self.model.used();
        for (virtual_block, block) in pairs {
            self.model.insert(dev, virtual_block, block);
            self.changed.insert(dev);
        }
        self.check_freed_and_wanted(&used, &freed);
        Ok(())
    }

    fn commit(&mut self) -> crate::Result {
        self.md.commit()?;
        self.committed = self.model.clone();
        self.begin();
        self.committed.check_committed(&mut self.md);
        Ok(())
    }

    fn abort(&mut self) {
        self.md.abort().expect("no faults here");
        let changed = std::mem::take(&mut self.changed);
        self.begin();
        self.model = self.committed.clone();
        for (dev, thin) in std::mem::take(&mut self.open) {
            if changed.contains(&dev) {
                self.aborted.insert(dev);
            }
            assert_eq!(
                self.md.thin_aborted_changes(&thin),
                self.aborted.contains(&dev)
            );
            if self.exists(dev) {
                self.open.insert(dev, thin);
            } else {
                assert_eq!(
                    self.md.find_block(&thin, 0, true),
                    Err(Error::NoDevice(id(dev)))
                );
                self.md.close_thin(&thin);
                self.aborted.remove(&dev);
            }
        }
        self.committed.check_committed(&mut self.md);
    }

    fn reopen(&mut self) {
        self.md = reopen(&self.md);
        self.model = self.committed.clone();
        self.open.clear();
        self.begin();
        self.aborted.clear();
        self.committed.check_committed(&mut self.md);
    }
}

/// More blocks than there are, some of which were freed since the last commit.
#[test]
fn what_was_freed_is_not_taken_before_a_commit() {
    let mut state = State::new();
    for op in [
        Op::Create(1),
        Op::Insert(1, 0, NR_DATA - 20),
        Op::Insert(1, 0, 10),
        Op::Insert(1, NR_DATA, 20),
    ] {
        state.apply(&op);
    }
    assert_eq!(state.md.free_data_blocks(), Ok(10));
    assert_eq!(state.not_to_be_had().len() as u64, NR_DATA);
    state.apply(&Op::Commit);
    state.apply(&Op::Insert(1, 2 * NR_DATA, 10));
    assert_eq!(state.md.free_data_blocks(), Ok(0));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_changes_give_what_the_model_says(ops in ops()) {
        let mut state = State::new();
        for op in &ops {
            state.apply(op);
        }
        state.model.check(&mut state.md);
        state.apply(&Op::Commit);
        check_with_tools(&state.md, &state.committed);
    }
}
