// SPDX-License-Identifier: GPL-2.0

//! What operations on the metadata of a pool cost: how often they ask the block manager for blocks, and under
//! valgrind, how many instructions they take.
//!
//! usage: costs [<part of a row's name>]
//!
//! Each row is measured on a pool of its own with 1 Mi mapped blocks. In the kernel each block that is asked for
//! costs a few hundred instructions more, and one that was changed since it was last read a checksum.
//!
//! For instructions, in total for one row:
//!
//!     cargo build --release --example costs
//!     valgrind --tool=callgrind --toggle-collect='*costs::measured*' target/release/examples/costs <row>

use std::{
    cell::{
        Cell,
        Ref,
        RefCell,
        RefMut, //
    },
    ops::{
        Deref,
        DerefMut, //
    },
    process::ExitCode,
};

use persistent_data::{
    block::{
        BlockData,
        BlockNr,
        Validator,
        BLOCK_SIZE, //
    },
    block_manager::{
        BlockManager,
        Guard, //
    },
    Error,
    Result, //
};
use thin_metadata::{
    DeviceId,
    Metadata,
    OpenParams,
    ThinHandle, //
};

/// A device in memory that counts what is asked of it.
struct CountingBm {
    blocks: Vec<Block>,
    /// The blocks that were changed since the last flush.
    dirty: RefCell<Vec<BlockNr>>,
    counts: Counts,
}

#[derive(Default)]
struct Block {
    data: RefCell<Option<Box<BlockData>>>,
    /// Whether it was changed since it was last read.
    stale: Cell<bool>,
    /// Whether it was changed since the last flush.
    is_dirty: Cell<bool>,
}

#[derive(Clone, Default)]
struct Counts {
    reads: Cell<u64>,
    /// Reads of blocks that were changed since they were last read.
    stale_reads: Cell<u64>,
    writes: Cell<u64>,
    new: Cell<u64>,
    flushed: Cell<u64>,
}

fn add(count: &Cell<u64>, n: u64) {
    count.set(count.get() + n);
}

impl CountingBm {
    fn new(nr_blocks: usize) -> Self {
        Self {
            blocks: (0..nr_blocks).map(|_| Block::default()).collect(),
            dirty: RefCell::default(),
            counts: Counts::default(),
        }
    }

    fn block(&self, block: BlockNr) -> Result<&Block> {
        let found = usize::try_from(block).ok().and_then(|i| self.blocks.get(i));
        found.ok_or(Error::OutOfBounds(block))
    }

    fn write_any(&self, block: BlockNr) -> Result<CountingGuard<RefMut<'_, BlockData>>> {
        let b = self.block(block)?;
        b.stale.set(true);
        if !b.is_dirty.replace(true) {
            self.dirty.borrow_mut().push(block);
        }
        let data = b
            .data
            .try_borrow_mut()
            .map_err(|_| Error::Conflict(block))?;
        let data = RefMut::map(data, |data| {
            // Not zeroed here: in the kernel it is there already.
            &mut **data.get_or_insert_with(|| Box::new(ZEROES))
        });
        Ok(CountingGuard { block, data })
    }
}

static ZEROES: BlockData = [0; BLOCK_SIZE];

struct CountingGuard<R> {
    block: BlockNr,
    data: R,
}

impl<R: Deref<Target = BlockData>> Deref for CountingGuard<R> {
    type Target = BlockData;

    fn deref(&self) -> &BlockData {
        &self.data
    }
}

impl<R: DerefMut<Target = BlockData>> DerefMut for CountingGuard<R> {
    fn deref_mut(&mut self) -> &mut BlockData {
        &mut self.data
    }
}

impl<R: Deref<Target = BlockData>> Guard for CountingGuard<R> {
    fn location(&self) -> BlockNr {
        self.block
    }
}

impl BlockManager for CountingBm {
    type ReadGuard<'a> = CountingGuard<Ref<'a, BlockData>>;
    type WriteGuard<'a> = CountingGuard<RefMut<'a, BlockData>>;

    fn nr_blocks(&self) -> BlockNr {
        self.blocks.len() as BlockNr
    }

    fn read(&self, block: BlockNr, _: &'static Validator) -> Result<Self::ReadGuard<'_>> {
        self.read_raw(block)
    }

    fn try_read(&self, block: BlockNr, _: &'static Validator) -> Result<Self::ReadGuard<'_>> {
        self.read_raw(block)
    }

    fn read_raw(&self, block: BlockNr) -> Result<Self::ReadGuard<'_>> {
        let b = self.block(block)?;
        add(&self.counts.reads, 1);
        if b.stale.replace(false) {
            add(&self.counts.stale_reads, 1);
        }
        let data = b.data.try_borrow().map_err(|_| Error::Conflict(block))?;
        let data = Ref::map(data, |data| data.as_deref().unwrap_or(&ZEROES));
        Ok(CountingGuard { block, data })
    }

    fn write(&self, block: BlockNr, _: &'static Validator) -> Result<Self::WriteGuard<'_>> {
        add(&self.counts.writes, 1);
        self.write_any(block)
    }

    fn write_zero(&self, block: BlockNr, _: &'static Validator) -> Result<Self::WriteGuard<'_>> {
        add(&self.counts.new, 1);
        let mut guard = self.write_any(block)?;
        guard.fill(0);
        Ok(guard)
    }

    fn write_copy(
        &self,
        block: BlockNr,
        _: &'static Validator,
        data: &BlockData,
    ) -> Result<Self::WriteGuard<'_>> {
        add(&self.counts.new, 1);
        let mut guard = self.write_any(block)?;
        guard.copy_from_slice(data);
        Ok(guard)
    }

    fn prefetch(&self, _: BlockNr) {}

    fn flush(&self) -> Result {
        for block in self.dirty.take() {
            if let Ok(block) = self.block(block) {
                block.stale.set(false);
                block.is_dirty.set(false);
                add(&self.counts.flushed, 1);
            }
        }
        Ok(())
    }

    fn flush_device(&self) -> Result {
        Ok(())
    }

    fn reset(&mut self) {}

    fn is_read_only(&self) -> bool {
        false
    }

    fn set_read_only(&self, _: bool) {}
}

type Pool = Metadata<CountingBm>;

const MAPPED: u64 = 1 << 20;
const NR_DATA: u64 = 4 << 20;
const NR_METADATA: usize = 1 << 16;
/// How many operations a row takes, unless it is one of few.
const N: u64 = 1 << 14;
const BATCH: u64 = 64;

const PARAMS: OpenParams = OpenParams {
    data_block_size: 128,
    format: true,
    read_only: false,
};

fn id(id: u64) -> thin_metadata::Result<DeviceId> {
    DeviceId::try_from(id)
}

/// Numbers below `end`, in no order; of the last 64 none comes twice if `end` is a power of two.
fn shuffled(i: u64, end: u64) -> u64 {
    i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % end
}

/// A pool with device 1, all blocks of which are mapped up to `MAPPED`, to data blocks in ascending or in no order.
fn pool(ascending: bool) -> thin_metadata::Result<(Pool, ThinHandle)> {
    let mut md = Metadata::open(CountingBm::new(NR_METADATA), PARAMS)?;
    md.resize_data(NR_DATA)?;
    md.create_thin(id(1)?)?;
    let thin = md.open_thin(id(1)?)?;
    for begin in (0..MAPPED).step_by(1024) {
        let mut pairs = Vec::new();
        md.alloc_data_blocks(1024, &mut |_| true, &mut |run| {
            pairs.extend(run.zip(begin + pairs.len() as u64..));
        })?;
        for (data, block) in &mut pairs {
            if !ascending {
                *block = shuffled(*block, MAPPED);
            }
            core::mem::swap(data, block);
        }
        pairs.sort_unstable();
        md.insert_blocks(&thin, &pairs, &mut |_| ())?;
    }
    md.commit()?;
    Ok((md, thin))
}

/// Maps blocks, which ascend, to new data blocks.
fn provision(md: &mut Pool, thin: &ThinHandle, blocks: &[u64]) -> thin_metadata::Result {
    let mut pairs = Vec::with_capacity(blocks.len());
    let mut left = blocks.iter();
    md.alloc_data_blocks(blocks.len() as u32, &mut |_| true, &mut |run| {
        pairs.extend(left.by_ref().copied().zip(run));
    })?;
    md.insert_blocks(thin, &pairs, &mut |_| ())
}

/// As [`provision`], for each batch of what `block` gives for all numbers below `N`.
fn provision_all(
    md: &mut Pool,
    thin: &ThinHandle,
    batch: u64,
    block: impl Fn(u64) -> u64,
) -> thin_metadata::Result<u64> {
    let mut blocks = Vec::new();
    for begin in (0..N).step_by(batch as usize) {
        blocks.clear();
        blocks.extend((begin..begin + batch).map(&block));
        blocks.sort_unstable();
        provision(md, thin, &blocks)?;
    }
    Ok(N)
}

type Operation = fn(&mut Pool, &ThinHandle) -> thin_metadata::Result<u64>;

struct Row {
    name: &'static str,
    /// What comes before, and does not count.
    prepare: Operation,
    /// Returns how many operations it was.
    run: Operation,
}

fn nothing(_: &mut Pool, _: &ThinHandle) -> thin_metadata::Result<u64> {
    Ok(0)
}

fn snapshot(md: &mut Pool, _: &ThinHandle) -> thin_metadata::Result<u64> {
    md.create_snap(id(2)?, id(1)?)?;
    md.commit()?;
    Ok(1)
}

fn look_up(
    md: &mut Pool,
    thin: &ThinHandle,
    block: impl Fn(u64) -> u64,
) -> thin_metadata::Result<u64> {
    for i in 0..N {
        assert!(md.find_block(thin, block(i), false)?.is_some());
    }
    Ok(N)
}

fn discard(
    md: &mut Pool,
    thin: &ThinHandle,
    block: impl Fn(u64) -> u64,
) -> thin_metadata::Result<u64> {
    for i in 0..N {
        let block = block(i);
        md.remove_range(thin, block, block + 1, &mut |_| ())?;
    }
    Ok(N)
}

const ROWS: &[Row] = &[
    Row {
        name: "lookup/sequential",
        prepare: nothing,
        run: |md, thin| look_up(md, thin, |i| i),
    },
    Row {
        name: "lookup/random",
        prepare: nothing,
        run: |md, thin| look_up(md, thin, |i| shuffled(i, MAPPED)),
    },
    Row {
        name: "lookup/near",
        prepare: nothing,
        run: |md, thin| {
            let mut seen = 0;
            for i in 0..N {
                let block = shuffled(i, MAPPED);
                let window = block & !63..(block | 63) + 1;
                md.find_block_near(thin, block, false, window, |_, value| {
                    seen += value.to_word();
                })?;
            }
            assert!(seen > 0);
            Ok(N)
        },
    },
    Row {
        name: "provision/single/sequential",
        prepare: nothing,
        run: |md, thin| provision_all(md, thin, 1, |i| MAPPED + i),
    },
    Row {
        name: "provision/single/random",
        prepare: nothing,
        run: |md, thin| provision_all(md, thin, 1, |i| MAPPED + shuffled(i, MAPPED)),
    },
    Row {
        name: "provision/batch/sequential",
        prepare: nothing,
        run: |md, thin| provision_all(md, thin, BATCH, |i| MAPPED + i),
    },
    Row {
        name: "provision/batch/random",
        prepare: nothing,
        run: |md, thin| provision_all(md, thin, BATCH, |i| MAPPED + shuffled(i, MAPPED)),
    },
    Row {
        name: "break/single/sequential",
        prepare: snapshot,
        run: |md, thin| provision_all(md, thin, 1, |i| i),
    },
    Row {
        name: "break/single/random",
        prepare: snapshot,
        run: |md, thin| provision_all(md, thin, 1, |i| shuffled(i, MAPPED)),
    },
    Row {
        name: "break/batch/sequential",
        prepare: snapshot,
        run: |md, thin| provision_all(md, thin, BATCH, |i| i),
    },
    Row {
        name: "break/batch/random",
        prepare: snapshot,
        run: |md, thin| provision_all(md, thin, BATCH, |i| shuffled(i, MAPPED)),
    },
    Row {
        name: "discard/sequential",
        prepare: nothing,
        run: |md, thin| discard(md, thin, |i| i),
    },
    Row {
        name: "discard/random",
        prepare: nothing,
        run: |md, thin| discard(md, thin, |i| shuffled(i, MAPPED)),
    },
    Row {
        name: "discard/half",
        prepare: nothing,
        run: |md, thin| {
            md.remove_range(thin, MAPPED / 4, MAPPED / 4 * 3, &mut |_| ())?;
            Ok(MAPPED / 2)
        },
    },
    Row {
        name: "discard/find",
        prepare: nothing,
        run: |md, thin| {
            let mut begin = 0;
            while let Some(range) = md.find_mapped_range(thin, begin, MAPPED)? {
                begin = range.end;
            }
            assert_eq!(begin, MAPPED);
            Ok(MAPPED)
        },
    },
    Row {
        name: "delete",
        prepare: nothing,
        run: |md, thin| {
            md.close_thin(thin);
            md.delete_thin(id(1)?, &mut |_| ())?;
            Ok(MAPPED)
        },
    },
    Row {
        name: "delete/shuffled",
        prepare: nothing,
        run: |md, thin| {
            md.close_thin(thin);
            md.delete_thin(id(1)?, &mut |_| ())?;
            Ok(MAPPED)
        },
    },
    Row {
        name: "discard/half/shuffled",
        prepare: nothing,
        run: |md, thin| {
            md.remove_range(thin, MAPPED / 4, MAPPED / 4 * 3, &mut |_| ())?;
            Ok(MAPPED / 2)
        },
    },
    Row {
        name: "delete/shared",
        prepare: snapshot,
        run: |md, _| {
            md.delete_thin(id(2)?, &mut |_| ())?;
            Ok(1)
        },
    },
    Row {
        name: "snapshot",
        prepare: nothing,
        run: |md, _| {
            for i in 2..66 {
                md.create_snap(id(i)?, id(1)?)?;
            }
            Ok(64)
        },
    },
    Row {
        name: "reserve",
        prepare: nothing,
        run: |md, _| {
            md.reserve_metadata_snap(|| Ok(()))?;
            Ok(1)
        },
    },
    Row {
        name: "release",
        prepare: |md, _| {
            md.reserve_metadata_snap(|| Ok(()))?;
            md.commit()?;
            Ok(1)
        },
        run: |md, _| {
            md.release_metadata_snap(&mut |_| ())?;
            Ok(1)
        },
    },
    Row {
        name: "commit",
        prepare: nothing,
        run: |md, thin| {
            for i in 0..64 {
                provision(md, thin, &[MAPPED + i])?;
                md.prepare_commit()?;
                let flushed = md.flush()?;
                md.write_superblock(flushed)?;
                let flushed = md.flush()?;
                md.finish_commit(flushed)?;
            }
            Ok(64)
        },
    },
    Row {
        name: "abort",
        prepare: nothing,
        run: |md, _| {
            md.abort()?;
            Ok(1)
        },
    },
];

/// What is measured, by a name that can be told to valgrind.
#[inline(never)]
fn measured(run: Operation, md: &mut Pool, thin: &ThinHandle) -> thin_metadata::Result<u64> {
    run(md, thin)
}

fn measure(row: &Row) -> thin_metadata::Result {
    let (mut md, thin) = pool(!row.name.contains("shuffled"))?;
    (row.prepare)(&mut md, &thin)?;
    // What comes first in a transaction is not what matters.
    let before = md.bm().counts.clone();
    let n = measured(row.run, &mut md, &thin)?;
    let after = &md.bm().counts;
    let per_operation = |count: fn(&Counts) -> &Cell<u64>| {
        (count(after).get() - count(&before).get()) as f64 / n as f64
    };
    println!(
        "{:28} {:8} {:8.3} {:8.3} {:8.3} {:8.3} {:8.3}",
        row.name,
        n,
        per_operation(|c| &c.reads),
        per_operation(|c| &c.stale_reads),
        per_operation(|c| &c.writes),
        per_operation(|c| &c.new),
        per_operation(|c| &c.flushed),
    );
    Ok(())
}

fn main() -> ExitCode {
    let part = std::env::args().nth(1).unwrap_or_default();
    println!("row                                 n    reads    stale   writes      new  flushed");
    for row in ROWS.iter().filter(|row| row.name.contains(&part)) {
        if let Err(e) = measure(row) {
            eprintln!("{}: {e}", row.name);
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
