// SPDX-License-Identifier: GPL-2.0

//! A pool on a recorder, beside a model of it.

use std::{
    collections::BTreeSet,
    rc::Rc, //
};

use persistent_data::cached::{
    CachedBm,
    Device, //
};
use thin_metadata::{
    Error,
    Mapping,
    Metadata,
    OpenParams,
    Result,
    ThinHandle, //
};

use crate::{
    check::Content,
    image::{
        Blocks as _,
        Disk, //
    },
    model::{
        id,
        Model, //
    },
    op::{
        Blocks,
        Op, //
    },
    recorder::{
        Commit,
        Handle,
        Meaning,
        Recorder, //
    },
    rng::mix,
};

/// How to open the pool.
pub const PARAMS: OpenParams = OpenParams {
    data_block_size: 128,
    format: true,
    read_only: false,
};

/// By how much a metadata device may grow in a run.
const MAX_GROWTH: u64 = 400;

type Bm = CachedBm<Handle>;

/// What must not happen.
pub type Violation = String;

/// A pool, and what should be in it.
pub struct World {
    device: Rc<Recorder>,
    md: Metadata<Bm>,
    model: Model,
    nr_metadata: u64,
    /// Data blocks that were taken since the last commit.
    taken: BTreeSet<u64>,
    needs_check: bool,
    /// Whether errors are expected: faults were asked for.
    has_faults: bool,
    nr_ops: u64,
}

fn no_flush() -> Result {
    Ok(())
}

fn open(device: &Rc<Recorder>) -> Result<Metadata<Bm>> {
    // Slots for all blocks that there may be later.
    let bm = device.at_limit(|| CachedBm::over(Handle(device.clone()), usize::MAX))?;
    Metadata::open(bm, PARAMS)
}

impl World {
    /// Makes a new pool on zeroes.
    pub fn format(nr_metadata: u64) -> Self {
        Self::open(Disk::new(nr_metadata), None).expect("a new pool")
    }

    /// Opens, or formats, what is on a disk whose superblock means `shown`.
    pub fn open(disk: Disk, shown: Meaning) -> Result<Self> {
        let nr_blocks = disk.nr_blocks();
        let device = Rc::new(Recorder::new(disk, nr_blocks + MAX_GROWTH, shown));
        Self::open_device(device)
    }

    /// As [`open`](Self::open), on a device.
    pub fn open_device(device: Rc<Recorder>) -> Result<Self> {
        let fresh = Commit::new(&Model::new(0), device.nr_blocks());
        device.set_next(fresh.clone());
        let md = open(&device)?;
        let commit = device.shown().unwrap_or_else(|| fresh.clone());
        if Rc::ptr_eq(&commit, &fresh) {
            device.committed(fresh);
        }
        Ok(Self {
            needs_check: md.needs_check(),
            device,
            md,
            model: commit.model.clone(),
            nr_metadata: commit.content.nr_metadata,
            taken: BTreeSet::new(),
            has_faults: false,
            nr_ops: 0,
        })
    }

    /// The device.
    pub fn device(&self) -> &Rc<Recorder> {
        &self.device
    }

    /// Says that faults are to be expected from now on.
    pub fn expect_faults(&mut self) {
        self.has_faults = true;
    }

    /// Whether the pool has failed: an abort did not work.
    pub fn is_failed(&self) -> bool {
        self.md.is_failed()
    }

    /// Lets the model be what the device shows.
    fn take_shown(&mut self) {
        let shown = self.device.shown().expect("it was formatted");
        self.model = shown.model.clone();
        self.nr_metadata = shown.content.nr_metadata;
        self.taken.clear();
    }

    fn commit_of(&self) -> Rc<Commit> {
        Commit::new(&self.model, self.nr_metadata)
    }

    /// Runs what commits, so that the device knows of what.
    fn committing<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let commit = self.commit_of();
        self.device.set_next(commit.clone());
        let result = f(self)?;
        self.device.committed(commit);
        self.taken.clear();
        Ok(result)
    }

    /// Opens the pool anew, without a word to the old one.
    pub fn reopen(&mut self) -> Result<(), Violation> {
        self.md = open(&self.device).map_err(|e| format!("the pool does not open: {e}"))?;
        self.take_shown();
        self.needs_check = self.md.needs_check();
        Ok(())
    }

    /// Carries a command out, and lives with what comes of it.
    pub fn apply(&mut self, op: Op) -> Result<(), Violation> {
        self.nr_ops += 1;
        if self.has_faults {
            // What is in memory cannot fail.
            self.md.bm().drop_cache();
        }
        let free = self.md.free_metadata_blocks().unwrap_or(0);
        let Err(e) = self.try_apply(op) else {
            return Ok(());
        };
        match e {
            Error::NoMetadataSpace => {
                let nr_blocks = self.md.nr_metadata_blocks().unwrap_or(0);
                if free > nr_blocks / 2 {
                    return Err(format!("{op:?}: no metadata space, but {free} are free"));
                }
            }
            e if self.has_faults && [5, 12].contains(&e.errno()) => {}
            Error::Failed | Error::NeedsAbort if self.has_faults => {}
            e => return Err(format!("{op:?}: {e}")),
        }
        if self.is_committing(op) && !self.md.needs_abort() && !self.md.is_failed() {
            // The commit may have got stuck between two steps: it may go on, or be given up.
            let retried = match self.nr_ops.is_multiple_of(2) {
                true => self.committing(|this| this.md.commit()),
                false => self.md.abort().map(|()| self.take_shown()),
            };
            if let Err(e) = retried {
                if !self.has_faults || ![5, 12, 28].contains(&e.errno()) {
                    return Err(format!("{op:?}, then: {e}"));
                }
                if !self.md.needs_abort() && !self.md.is_failed() && self.md.abort().is_ok() {
                    self.take_shown();
                }
            }
        }
        self.recover().map_err(|e| format!("{op:?}: {e}"))
    }

    fn is_committing(&self, op: Op) -> bool {
        matches!(
            op,
            Op::Commit | Op::Steps(..) | Op::Reserve | Op::Reopen | Op::NeedsCheck
        )
    }

    /// Aborts if that is necessary. If it fails the pool does, too.
    pub fn recover(&mut self) -> Result<(), Violation> {
        if self.md.is_failed() {
            return match self.has_faults {
                true => Ok(()),
                false => Err("the pool has failed".into()),
            };
        }
        if !self.md.needs_abort() {
            return Ok(());
        }
        match self.md.abort() {
            Ok(()) => {
                self.take_shown();
                Ok(())
            }
            Err(e) if self.has_faults && [5, 12].contains(&e.errno()) => {
                match self.md.is_failed() {
                    true => Ok(()),
                    false => Err(format!("abort: {e}, and the pool has not failed")),
                }
            }
            Err(e) => Err(format!("abort: {e}")),
        }
    }

    fn exists(&self, dev: u64) -> bool {
        self.model.pool.devices.contains_key(&dev)
    }

    fn with_thin<T>(
        &mut self,
        dev: u64,
        f: impl FnOnce(&mut Self, &ThinHandle) -> Result<T>,
    ) -> Result<T> {
        let thin = self.md.open_thin(id(dev))?;
        let result = f(self, &thin);
        self.md.close_thin(&thin);
        result
    }

    fn try_apply(&mut self, op: Op) -> Result {
        let (md, model) = (&mut self.md, &mut self.model);
        match op {
            Op::Create(dev) => match md.create_thin(id(dev)) {
                Err(Error::DeviceExists(_)) => assert!(self.exists(dev)),
                result => {
                    result?;
                    model.create(dev);
                }
            },
            Op::Snap(dev, origin) => match md.create_snap(id(dev), id(origin)) {
                Err(Error::DeviceExists(_)) => assert!(self.exists(dev)),
                Err(Error::NoDevice(_)) => assert!(!self.exists(origin)),
                result => {
                    result?;
                    model.snap(dev, origin);
                }
            },
            Op::Delete(dev) => match md.delete_thin(id(dev), &mut |_| ()) {
                Err(Error::NoDevice(_)) => assert!(!self.exists(dev)),
                result => {
                    result?;
                    model.pool.devices.remove(&dev);
                }
            },
            Op::Insert(..) | Op::InsertTogether(..) | Op::Remove(..) | Op::RemoveAll(_) => {
                self.map(op)?
            }
            Op::References(begin, count) => {
                let end = begin + count;
                match md.inc_data_range(begin, end) {
                    Err(Error::BadBlocks { .. }) => assert!(end > model.pool.nr_data),
                    result => {
                        result?;
                        md.dec_data_range(begin, end)?;
                    }
                }
            }
            Op::TransactionId(new) => {
                md.set_transaction_id(model.pool.transaction_id, new)?;
                model.pool.transaction_id = new;
            }
            Op::ResizeData(extra) => {
                md.resize_data(model.pool.nr_data + extra)?;
                model.pool.nr_data += extra;
            }
            Op::ResizeMetadata(extra) => {
                let new = (self.nr_metadata + extra).min(self.device.limit());
                if new > self.device.nr_blocks() {
                    self.device.grow(new);
                }
                md.resize_metadata(new)?;
                self.nr_metadata = new;
            }
            Op::Reserve => self.reserve()?,
            Op::Release => match md.release_metadata_snap(&mut |_| ()) {
                Err(Error::NoSnap) => assert!(model.held.is_none()),
                result => {
                    result?;
                    model.held = None;
                }
            },
            Op::Commit => self.commit()?,
            Op::Steps(n, aborts) => self.steps(n, aborts)?,
            Op::Abort => {
                md.abort()?;
                self.take_shown();
            }
            Op::Reopen if md.is_failed() || md.needs_abort() => {
                // There is nothing to commit any more, or nothing that could be.
                md.close(no_flush)?;
                self.md = open(&self.device)?;
                self.take_shown();
                self.needs_check = self.md.needs_check();
            }
            Op::Reopen => {
                self.committing(|this| this.md.close(no_flush))?;
                self.md = open(&self.device)?;
            }
            Op::Kill => {
                self.md = open(&self.device)?;
                self.take_shown();
                self.needs_check = self.md.needs_check();
            }
            Op::LookUp(dev, begin) => self.look_up(dev, begin)?,
            Op::NeedsCheck => {
                md.set_needs_check()?;
                self.needs_check = true;
            }
            Op::WriteBack(seed) => self.write_back(seed),
        }
        if !self.has_faults {
            assert_eq!(self.md.needs_check(), self.needs_check);
        }
        Ok(())
    }

    /// Commands that change mappings.
    fn map(&mut self, op: Op) -> Result {
        let (Op::Insert(dev, _)
        | Op::InsertTogether(dev, ..)
        | Op::Remove(dev, ..)
        | Op::RemoveAll(dev)) = op
        else {
            return Ok(());
        };
        if !self.exists(dev) {
            return match self.md.open_thin(id(dev)) {
                Err(Error::NoDevice(_)) => Ok(()),
                result => panic!("{op:?}: {:?}", result?),
            };
        }
        self.with_thin(dev, |this, thin| match op {
            Op::Insert(_, blocks) => this.insert(dev, thin, blocks),
            Op::InsertTogether(_, blocks, surplus) => {
                this.insert_together(dev, thin, blocks, surplus)
            }
            Op::Remove(_, begin, count) => this.remove(dev, thin, begin, begin + count),
            _ => this.remove(dev, thin, 0, u64::MAX),
        })
    }

    fn write_back(&self, seed: u64) {
        self.md
            .bm()
            .write_back(|block| mix(block ^ seed).is_multiple_of(2));
    }

    /// Says that no data block can be had, if that is so.
    fn check_no_data_space(&self) {
        if self.has_faults {
            // What was put back while memory was short waits for the commit.
            return;
        }
        assert_eq!(
            self.in_use().len() as u64,
            self.model.pool.nr_data,
            "there are free data blocks"
        );
    }

    /// The data blocks that must not be handed out: those that the last commit or anybody since then has used.
    fn in_use(&self) -> BTreeSet<u64> {
        let shown = self.device.shown().expect("it was formatted");
        let mut used = shown.model.used();
        used.extend(self.model.used());
        used.extend(&self.taken);
        used
    }

    fn insert(&mut self, dev: u64, thin: &ThinHandle, blocks: Blocks) -> Result {
        let mut used = self.in_use();
        for virtual_block in blocks.iter() {
            let block = match self.md.alloc_data_block(&mut |_| true) {
                Err(Error::NoDataSpace) => {
                    self.check_no_data_space();
                    return Ok(());
                }
                result => result?,
            };
            assert!(used.insert(block), "data block {block} is in use");
            self.taken.insert(block);
            self.md
                .insert_block(thin, virtual_block, block, &mut |_| ())?;
            self.model.insert(dev, virtual_block, block);
        }
        Ok(())
    }

    fn insert_together(
        &mut self,
        dev: u64,
        thin: &ThinHandle,
        blocks: Blocks,
        surplus: u64,
    ) -> Result {
        let in_use = self.in_use();
        let mut data = Vec::new();
        let wanted = (blocks.count + surplus) as u32;
        match self
            .md
            .alloc_data_blocks(wanted, &mut |_| true, &mut |run| data.extend(run))
        {
            Err(Error::NoDataSpace) => {
                self.check_no_data_space();
                return Ok(());
            }
            result => assert_eq!(result? as usize, data.len()),
        }
        for block in &data {
            assert!(!in_use.contains(block), "data block {block} is in use");
        }
        self.taken.extend(&data);
        let (used, unused) = data.split_at(data.len().min(blocks.count as usize));
        for block in unused.iter().rev() {
            self.md.put_back_data_blocks(*block..*block + 1)?;
        }
        let pairs: Vec<_> = blocks.iter().zip(used.iter().copied()).collect();
        self.md.insert_blocks(thin, &pairs, &mut |_| ())?;
        for (virtual_block, block) in pairs {
            self.model.insert(dev, virtual_block, block);
        }
        for block in unused {
            self.taken.remove(block);
        }
        Ok(())
    }

    fn remove(&mut self, dev: u64, thin: &ThinHandle, begin: u64, end: u64) -> Result {
        self.md.remove_range(thin, begin, end, &mut |_| ())?;
        self.model.remove(dev, begin, end);
        Ok(())
    }

    fn reserve(&mut self) -> Result {
        if self.model.held.is_some() {
            return match self.md.reserve_metadata_snap(no_flush) {
                Err(Error::SnapHeld(_)) => Ok(()),
                result => panic!("there is one already: {:?}", result?),
            };
        }
        self.committing(|this| this.md.reserve_metadata_snap(no_flush))?;
        self.model.held = self.model.pool.held();
        Ok(())
    }

    fn commit(&mut self) -> Result {
        let data_flush_fails = self.nr_ops.is_multiple_of(4);
        self.committing(|this| {
            if data_flush_fails && this.md.prepare_commit()? {
                let failed = this.md.commit_with(|| Err(Error::DataFlush(5)));
                assert_eq!(failed, Err(Error::DataFlush(5)));
            }
            this.md.commit()
        })
    }

    fn steps(&mut self, n: u64, aborts: bool) -> Result {
        let commit = self.commit_of();
        self.device.set_next(commit.clone());
        if !self.md.prepare_commit()? {
            return Ok(());
        }
        let mut flushed = None;
        for step in 1..n {
            self.write_back(self.nr_ops * 8 + step);
            match self.md.create_thin(id(99)) {
                Err(Error::Prepared) => {}
                result => panic!("a commit is under way: {:?}", result?),
            }
            match (step, flushed.take()) {
                (1 | 3, _) => flushed = Some(self.md.flush()?),
                (2, Some(flushed)) => self.md.write_superblock(flushed)?,
                (4, Some(flushed)) => self.md.finish_commit(flushed)?,
                _ => unreachable!(),
            }
        }
        self.write_back(self.nr_ops * 8);
        match aborts {
            // The superblock may have got to the device, or not.
            true if n < 5 => {
                self.md.abort()?;
                self.take_shown();
            }
            _ => {
                self.md.commit()?;
                self.device.committed(commit);
                self.taken.clear();
            }
        }
        Ok(())
    }

    fn look_up(&mut self, dev: u64, begin: u64) -> Result {
        self.md.bm().drop_cache();
        if !self.exists(dev) {
            return Ok(());
        }
        let device = self.model.device(dev).clone();
        self.with_thin(dev, |this, thin| {
            let md = &mut this.md;
            for block in begin..begin + 4 {
                let wanted = device.mappings.get(&block).map(|&(block, time)| Mapping {
                    block,
                    shared: device.snapshotted_time > time,
                });
                match md.find_block(thin, block, false) {
                    Err(Error::WouldBlock) => md.issue_prefetches(),
                    found => assert_eq!(found, Ok(wanted)),
                }
                assert_eq!(md.find_block(thin, block, true)?, wanted);
            }
            let next = device.mappings.range(begin..).next().map(|(b, _)| *b);
            assert_eq!(md.next_mapped(thin, begin, u64::MAX)?, next);
            let range = md.find_mapped_range(thin, begin, u64::MAX)?;
            assert_eq!(range.map(|range| range.begin), next);
            let highest = device.mappings.keys().next_back().copied();
            assert_eq!(md.highest_mapped(thin)?, highest);
            assert_eq!(md.mapped_count(thin)?, device.mapped_blocks);
            if let Some((block, _)) = device.mappings.values().next() {
                md.block_is_shared(*block)?;
            }
            if let Some(free) = md.find_free_range(0, this.model.pool.nr_data)? {
                let used = this.model.used();
                assert!(used.range(free).next().is_none(), "a free block is in use");
            }
            Ok(())
        })
    }

    /// What the pool should hold now.
    pub fn content(&self) -> Content {
        Content::of_model(&self.model, self.nr_metadata)
    }

    /// Compares all mappings of the pool in memory with the model.
    pub fn compare(&mut self) -> Result<(), Violation> {
        let wanted = self.model.pool.devices.clone();
        for (dev, device) in wanted {
            let found = self
                .with_thin(dev, |this, thin| {
                    let mut found = Vec::new();
                    let mut begin = 0;
                    while let Some(range) = this.md.find_mapped_range(thin, begin, u64::MAX)? {
                        for n in 0..range.end - range.begin {
                            found.push((range.begin + n, range.block + n, range.shared));
                        }
                        begin = range.end;
                    }
                    Ok(found)
                })
                .map_err(|e| format!("device {dev}: {e}"))?;
            let mappings = device.mappings.iter();
            let wanted: Vec<_> = mappings
                .map(|(b, (block, time))| (*b, *block, device.snapshotted_time > *time))
                .collect();
            if found != wanted {
                return Err(format!("device {dev} has {found:?}, wanted {wanted:?}"));
            }
        }
        Ok(())
    }
}
