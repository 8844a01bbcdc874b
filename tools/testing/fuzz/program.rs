// SPDX-License-Identifier: GPL-2.0

//! Programs: what is done with the pool of an image.

use std::{
    ops::Range,
    rc::Rc, //
};

use persistent_data::{
    block_manager::BlockManager,
    platform::fail_allocation, //
};
use thin_metadata::{
    DeviceId,
    Error,
    Flushed,
    Metadata,
    OpenParams,
    Result,
    ThinHandle,
    View, //
};

use crate::{
    base::{
        self,
        DATA_BLOCK_SIZE, //
    },
    checker::{
        self,
        Depth, //
    },
    edit,
    image::Image,
    input::{
        Input,
        Record,
        OPERATION, //
    },
    store::{
        Counts,
        Store,
        Watched, //
    },
};

/// How many kinds of operations there are.
pub const KINDS: u8 = 44;

/// The most blocks that one operation is asked to deal with.
const MAX_RANGE: u64 = 1 << 20;

/// How long the list of data blocks is that were allocated and not mapped.
const MAX_HELD: usize = 256;

/// What came of an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Whether the metadata could be opened.
    pub opened: bool,
    /// How many operations worked.
    pub worked: u32,
    /// How many gave errors.
    pub failed: u32,
    /// How many commits there were.
    pub commits: u32,
}

/// Plays an input. Panics are faults.
pub fn play(bytes: &[u8]) -> Outcome {
    let input = Input::of(bytes);
    let bases = base::all();
    let base = &bases[usize::from(input.base) % bases.len()];
    let mut image = Image::new(base);
    edit::apply(&mut image, &input.edits);
    let store = Store::new(image, input.extra);
    let mut program = Program {
        trust: if input.edits.is_empty() {
            Trust::Exact
        } else {
            Trust::None
        },
        read_only: input.read_only,
        md: None,
        thins: Vec::new(),
        held: Vec::new(),
        old: 0,
        held_committed: Counts::new(),
        lost: Counts::new(),
        faulty: false,
        flushed: None,
        outcome: Outcome::default(),
        grown: 0,
        changed: false,
        store,
    };
    if program.trust == Trust::Exact {
        // It is known to be all right.
        program.store.protect(base.counts().to_vec());
    }
    program.reopen(false);
    for operation in &input.operations {
        program.step(operation);
    }
    program.end();
    program.outcome
}

/// What may be expected of an image.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
enum Trust {
    /// Nothing.
    None,
    /// All is as it should be, but that data blocks may count as in use that are not: a fault may have hit at any time.
    Leaks,
    /// All is as it should be.
    Exact,
}

struct Program {
    store: Rc<Store>,
    trust: Trust,
    read_only: bool,
    md: Option<Metadata<Watched>>,
    thins: Vec<ThinHandle>,
    /// Data blocks that were allocated in this transaction, to be mapped.
    held: Vec<u64>,
    /// How many of them were allocated before the last commit, and so cannot be put back.
    old: usize,
    /// References to data blocks that the last commit has and no mapping.
    held_committed: Counts,
    /// References to data blocks of this transaction that will not be mapped any more.
    lost: Counts,
    /// Whether a fault was asked for.
    faulty: bool,
    flushed: Option<Flushed>,
    outcome: Outcome,
    /// How large the data device has become in this transaction.
    grown: u64,
    /// Whether there was a commit.
    changed: bool,
}

impl Program {
    /// Compares what is on the device with what is expected.
    fn examine(&mut self, depth: Depth) {
        if self.trust == Trust::None {
            return;
        }
        let found = checker::examine(&self.store.image(), depth)
            .unwrap_or_else(|e| panic!("metadata that were all right are wrong: {e}"));
        if depth == Depth::All {
            let exact = self.trust == Trust::Exact;
            let mut wanted = found.data;
            for (block, count) in self.held_committed.iter().filter(|_| exact) {
                wanted[*block as usize] += count;
            }
            for (block, (used, counted)) in wanted.iter().zip(found.data_counted).enumerate() {
                let good = *used == counted || (!exact && *used < counted);
                assert!(
                    good,
                    "data block {block} is used {used} times, counted {counted}"
                );
            }
        }
        self.store.protect(found.metadata);
    }

    /// The metadata on the device may be new: they are, if a commit worked.
    fn settle(&mut self, worked: bool) {
        if !self.store.take_committed() {
            return;
        }
        self.outcome.commits += 1;
        self.old = self.held.len();
        if worked && self.trust == Trust::Exact {
            self.held_committed = self.lost.clone();
            for block in &self.held {
                *self.held_committed.entry(*block).or_default() += 1;
            }
        } else if !worked {
            self.trust = if self.trust == Trust::None {
                Trust::None
            } else {
                Trust::Leaks
            };
        }
        self.changed = true;
        self.examine(Depth::Metadata);
    }

    fn reopen(&mut self, format: bool) {
        self.md = None;
        self.thins.clear();
        self.give_up_held();
        self.flushed = None;
        let params = OpenParams {
            data_block_size: DATA_BLOCK_SIZE,
            format,
            read_only: self.read_only,
        };
        match Metadata::open(Watched::new(&self.store), params) {
            Ok(md) => {
                if self.read_only {
                    md.set_read_only(true);
                }
                self.outcome.opened = true;
                self.md = Some(md);
            }
            Err(e) => self.expect(e),
        }
    }

    /// Whether an error may come up.
    fn expect(&mut self, e: Error) {
        self.outcome.failed += 1;
        if self.trust == Trust::None || self.faulty {
            return;
        }
        let bad = matches!(
            e,
            Error::Library(_)
                | Error::BadRoot { .. }
                | Error::BadMapping { .. }
                | Error::MappedBlocks(_)
        );
        assert!(!bad, "good metadata gave: {e}");
    }

    fn end(&mut self) {
        fail_allocation(None);
        self.store.fail(None);
        // What is left of the pool can always be given up, or closed.
        if let Some(md) = &mut self.md {
            for thin in self.thins.drain(..) {
                md.close_thin(&thin);
            }
            if md.needs_abort() {
                let failed = md.abort().is_err();
                assert_eq!(failed, md.is_failed());
                assert!(
                    !failed || self.trust == Trust::None,
                    "an abort of good metadata failed"
                );
            }
        }
        self.settle(false);
        if let Some(md) = &mut self.md {
            let closed = md.close(|| Ok(()));
            if let Err(e) = closed {
                self.faulty &= self.trust == Trust::None;
                self.expect(e);
            }
            self.settle(closed.is_ok());
        }
        self.faulty = false;
        self.reopen(false);
        if self.changed {
            self.examine(Depth::All);
        }
        // The program itself must not have lost an image that was all right.
        assert!(self.md.is_some() || self.trust == Trust::None);
    }

    /// The transaction is over, and what was allocated in it is free again.
    fn give_up_held(&mut self) {
        self.lost = self.held_committed.clone();
        self.held.clear();
        self.old = 0;
        self.grown = 0;
    }

    /// Whoever takes or gives back references that are not his makes metadata wrong.
    fn lie(&mut self) {
        self.trust = Trust::None;
        self.store.protect(Default::default());
    }

    fn step(&mut self, operation: &Record) {
        let Record { a, b, c, .. } = *operation;
        let kind = (operation.kind & !OPERATION) % KINDS;
        match kind {
            0 => return self.reopen(c & 0xff == 7),
            1 if self.trust == Trust::None => {
                self.read_only = a & 7 == 7;
                return self.reopen(false);
            }
            2 => {
                self.faulty = true;
                return self.store.fail(Some(u32::from(b & 0xff)));
            }
            3 => {
                self.faulty = true;
                return fail_allocation(Some(u64::from(b & 0xff)));
            }
            4 => return self.view(c),
            _ => {}
        }
        let Some(mut md) = self.md.take() else {
            return;
        };
        md.bm().begin();
        let result = self.operate(&mut md, kind, a, b, c);
        let failed = md.is_failed();
        assert!(!(failed && md.needs_abort()));
        self.md = Some(md);
        match result {
            Ok(()) => self.outcome.worked += 1,
            Err(e) => self.expect(e),
        }
        self.settle(result.is_ok());
        if failed {
            // Pools are opened again then.
            self.reopen(false);
        }
    }

    /// Reads everything as programs do that are no pool.
    fn view(&mut self, c: u64) {
        let bm = Watched::new(&self.store);
        let look = |view: View<'_, Watched>| {
            let mut ids = Vec::new();
            view.for_devices(|id, _| {
                ids.push(id);
                Ok(())
            })?;
            for id in ids.iter().skip(c as usize & 0xff).take(4) {
                view.for_mappings(*id, |_, _| Ok(()))?;
                view.mapping(*id, c >> 8)?;
                view.device(*id)?;
            }
            bm.begin();
            Ok(())
        };
        let result = View::new(&bm).and_then(|view| {
            let snap = view.metadata_snap();
            look(view)?;
            match snap? {
                Some(snap) => look(snap),
                None => Ok(()),
            }
        });
        match result {
            Ok(()) => self.outcome.worked += 1,
            Err(e) => self.expect(e),
        }
    }

    fn operate(&mut self, md: &mut Metadata<Watched>, kind: u8, a: u8, b: u16, c: u64) -> Result {
        let device = |n: u16| match n % 32 {
            n @ 0..=12 => id(u64::from(n)),
            13 => id(0xff_ffff),
            _ => id(u64::from(b % 840)),
        };
        match kind {
            5..=7 => return self.commit_steps(md, kind),
            8 | 9 => {
                let result = md.commit_with(|| match a {
                    0 => Err(Error::DataFlush(5)),
                    _ => Ok(()),
                });
                return if a == 0 {
                    result
                } else {
                    self.done_committing(result)
                };
            }
            10 | 11 => {
                let result = md.abort();
                self.give_up_held();
                self.flushed = None;
                return result;
            }
            12 | 13 => return md.create_thin(device(b)),
            14 | 15 => return md.create_snap(device(b), device(u16::from(a))),
            16 => return md.delete_thin(device(b), &mut |_| ()),
            17 | 18 => {
                if self.thins.len() < 8 {
                    self.thins.push(md.open_thin(device(b))?);
                }
                return Ok(());
            }
            19 => {
                if !self.thins.is_empty() {
                    let thin = self.thins.remove(usize::from(a) % self.thins.len());
                    md.close_thin(&thin);
                }
                return Ok(());
            }
            20 => return md.reserve_metadata_snap(|| Ok(())),
            21 => return md.release_metadata_snap(&mut |_| ()),
            22 => {
                let now = md.nr_data_blocks()?;
                let new = now.saturating_add(if a < 250 {
                    c % 20_000
                } else {
                    (1 << 31) + c % (1 << 40)
                });
                md.resize_data(new)?;
                self.grown = new;
                return Ok(());
            }
            23 => {
                let now = md.nr_metadata_blocks()?;
                let device = md.bm().nr_blocks();
                return md.resize_metadata(now.saturating_add(c % 80).min(device));
            }
            24..=27 => return self.allocate(md, a, b, c),
            28 => return self.count(md, a, b, c),
            29 => {
                let old = md.transaction_id()?;
                return md.set_transaction_id(if a == 1 { c } else { old }, c);
            }
            30 => {
                if a & 3 == 3 {
                    return md.set_needs_check();
                }
                return Ok(());
            }
            31 => {
                // In a pool that may be written.
                if !self.read_only {
                    md.set_read_only(a & 3 == 3);
                }
                return Ok(());
            }
            32 => return questions(md, a, b, c),
            _ => {}
        }
        let thin = match self.thins.len() {
            0 => {
                let thin = md.open_thin(device(u16::from(a)))?;
                self.thins.push(thin.clone());
                thin
            }
            n => self.thins[usize::from(a) % n].clone(),
        };
        let begin = match c >> 60 {
            0..=11 => u64::from(b),
            12 => c & 0xff_ffff,
            13 => u64::MAX - (c & 0xffff),
            _ => c,
        };
        let end = begin.saturating_add((c & 0xffff_ffff) % MAX_RANGE);
        match kind {
            33 | 34 => self.insert(md, &thin, begin, c),
            35 => md.remove_range(&thin, begin, end, &mut |_| ()),
            36 => {
                let all = md
                    .highest_mapped(&thin)?
                    .map_or(1, |block| block.saturating_add(1));
                md.remove_range(&thin, 0, all, &mut |_| ())
            }
            37 => {
                let found = md.find_block(&thin, begin, c & 1 == 0)?;
                self.in_bounds(md, found.map(|found| found.block))
            }
            38 => {
                let window = begin.saturating_sub(600)..begin.saturating_add(600);
                let limit = self.limit(md)?;
                let found = md.find_block_near(&thin, begin, true, window, |_, near| {
                    assert!(near.block() < limit);
                })?;
                self.in_bounds(md, found.map(|found| found.block))
            }
            39 => self.ranges(md, &thin, begin..end, 32),
            40 => {
                let next = md.next_mapped(&thin, begin, end)?;
                assert!(next.is_none_or(|next| (begin..end).contains(&next)));
                Ok(())
            }
            41 => {
                md.mapped_count(&thin)?;
                self.ranges(md, &thin, 0..u64::MAX, 1000)
            }
            42 => {
                let _ = md.find_block(&thin, begin, false);
                md.issue_prefetches();
                md.find_block(&thin, begin, false).map(drop)
            }
            _ => {
                let _ = md.thin_aborted_changes(&thin);
                let _ = md.thin_changed_this_transaction(&thin);
                md.snapshotted_time(&thin).map(drop)
            }
        }
    }

    /// The first runs of mapped blocks within a range.
    fn ranges(
        &self,
        md: &Metadata<Watched>,
        thin: &ThinHandle,
        range: Range<u64>,
        max: u32,
    ) -> Result {
        let mut at = range.start;
        for _ in 0..max {
            let Some(found) = md.find_mapped_range(thin, at, range.end)? else {
                break;
            };
            assert!(at <= found.begin && found.begin < found.end && found.end <= range.end);
            let last = found.block + (found.end - found.begin - 1);
            self.in_bounds(md, Some(last))?;
            at = found.end;
        }
        Ok(())
    }

    fn in_bounds(&self, md: &Metadata<Watched>, block: Option<u64>) -> Result {
        let limit = self.limit(md)?;
        if let Some(block) = block {
            assert!(block < limit, "a mapping to data block {block} of {limit}");
        }
        Ok(())
    }

    /// The size of the data device.
    fn limit(&self, md: &Metadata<Watched>) -> Result<u64> {
        Ok(md.nr_data_blocks()?.max(self.grown))
    }

    fn commit_steps(&mut self, md: &mut Metadata<Watched>, kind: u8) -> Result {
        match kind {
            5 => md.prepare_commit().map(drop),
            6 => {
                self.flushed = Some(md.flush()?);
                Ok(())
            }
            _ => {
                let Some(flushed) = self.flushed.take() else {
                    return Ok(());
                };
                md.write_superblock(flushed)?;
                // It may be written from now on, whatever comes.
                self.trust = if self.trust == Trust::None {
                    Trust::None
                } else {
                    Trust::Leaks
                };
                let flushed = md.flush()?;
                let result = md.finish_commit(flushed);
                self.done_committing(result)
            }
        }
    }

    fn done_committing(&mut self, result: Result) -> Result {
        self.settle(result.is_ok());
        result
    }

    /// Takes data blocks, or puts them back.
    fn allocate(&mut self, md: &mut Metadata<Watched>, a: u8, b: u16, c: u64) -> Result {
        if a & 7 == 7 {
            if self.held.len() <= self.old {
                return Ok(());
            }
            let Some(block) = self.held.pop() else {
                return Ok(());
            };
            let mut back = block..block + 1;
            if a & 8 != 0 && self.trust == Trust::None {
                back = c % 4000..c % 4000 + u64::from(b % 8);
            }
            if let Err(e) = md.put_back_data_blocks(back) {
                self.held.push(block);
                return Err(e);
            }
            return Ok(());
        }
        if self.held.len() >= MAX_HELD {
            return Ok(());
        }
        let limit = self.limit(md)?;
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut usable = |block: u64| {
            assert!(block < limit, "asked for data block {block} of {limit}");
            a & 0x30 != 0x30 || !block.is_multiple_of(3)
        };
        let n = u32::from(b % 64) + 1;
        let result = md.alloc_data_blocks(n, &mut usable, &mut |run| runs.push(run));
        for block in runs.into_iter().flatten() {
            assert!(block < limit, "got data block {block} of {limit}");
            if self.trust != Trust::None {
                assert!(
                    !self.held.contains(&block),
                    "data block {block} was handed out twice"
                );
            }
            self.held.push(block);
        }
        result.map(drop)
    }

    /// Changes counts of data blocks.
    fn count(&mut self, md: &mut Metadata<Watched>, a: u8, b: u16, c: u64) -> Result {
        let begin = u64::from(b);
        let end = begin + c % 4096;
        if a & 15 != 15 && self.trust != Trust::None {
            return Ok(());
        }
        self.lie();
        match a & 0x80 {
            0 => md.inc_data_range(begin, end),
            _ => md.dec_data_range(begin, end),
        }
    }

    /// Maps blocks that were allocated, or whatever `c` says.
    fn insert(
        &mut self,
        md: &mut Metadata<Watched>,
        thin: &ThinHandle,
        begin: u64,
        c: u64,
    ) -> Result {
        if c & 0xf000 == 0xf000 {
            self.lie();
            let limit = self.limit(md)?;
            return md.insert_block(
                thin,
                begin,
                (c >> 16) % limit.saturating_add(2),
                &mut |_| (),
            );
        }
        let n = self.held.len().min(1 + (c >> 32) as usize % 64);
        let step = 1 + (c >> 40) % 300;
        let blocks = self.held.split_off(self.held.len() - n);
        let pairs: Vec<_> = (0..)
            .map_while(|i: u64| begin.checked_add(i * step))
            .zip(blocks.iter().copied())
            .collect();
        let mapped = pairs.len();
        let result = md.insert_blocks(thin, &pairs, &mut |_| ());
        let kept = match result {
            Ok(()) => &blocks[mapped..],
            Err(_) => &blocks[..],
        };
        self.held.extend_from_slice(kept);
        self.old = self.old.min(self.held.len());
        result
    }
}

/// All that changes nothing.
fn questions(md: &mut Metadata<Watched>, a: u8, b: u16, c: u64) -> Result {
    md.free_data_blocks()?;
    md.free_metadata_blocks()?;
    md.may_use_reserve()?;
    md.metadata_snap()?;
    md.set_threshold(u64::from(a))?;
    md.threshold_crossed();
    md.needs_commit();
    md.changed_this_transaction();
    md.needs_check();
    let limit = md.nr_data_blocks()?.max(1);
    md.block_is_shared(u64::from(b) % limit)?;
    let begin = c % limit;
    let end = limit.min(begin + u64::from(b));
    let free = md.find_free_range(begin, end)?;
    assert!(free.is_none_or(|free| begin <= free.start && free.end <= end));
    Ok(())
}

fn id(id: u64) -> DeviceId {
    DeviceId::try_from(id).expect("a small number")
}
