// SPDX-License-Identifier: GPL-2.0

//! A block manager in memory, for tests: it counts and fails I/O and survives simulated crashes.
//!
//! The cache holds what the code under test sees. Below it, the device has a volatile write cache, which
//! takes what is written, and stable storage, which takes what was written before a flush. A crash loses the
//! cache, and any part of what is not stable.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        MutexGuard,
        PoisonError, //
    },
};

use crate::{
    block::{
        BlockData,
        BlockNr,
        BLOCK_SIZE, //
    },
    cached::{
        CachedBm,
        Device, //
    },
    error::{
        Error,
        Result, //
    },
};

/// The errno of injected faults.
const EIO: i32 = 5;

/// The block manager in memory.
pub type MemoryBm = CachedBm<MemoryDevice>;

/// What a device does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Io {
    /// Reads of single blocks.
    Read,
    /// Writes of single blocks.
    Write,
    /// Flushes.
    Flush,
}

/// How often a device did what.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Reads of single blocks.
    pub reads: u64,
    /// Writes of single blocks.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
}

#[derive(Default)]
struct State {
    stable: BTreeMap<BlockNr, Box<BlockData>>,
    /// Written, but not flushed.
    volatile: BTreeMap<BlockNr, Box<BlockData>>,
    counts: Counts,
    /// The kind of I/O that shall fail, and how many succeed before.
    fault: Option<(Io, u64)>,
}

impl State {
    fn start(&mut self, io: Io) -> Result {
        let count = match io {
            Io::Read => &mut self.counts.reads,
            Io::Write => &mut self.counts.writes,
            Io::Flush => &mut self.counts.flushes,
        };
        *count += 1;

        match self.fault {
            Some((kind, 0)) if kind == io => {
                self.fault = None;
                Err(Error::Io(EIO))
            }
            Some((kind, n)) if kind == io => {
                self.fault = Some((kind, n - 1));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// A device in memory.
pub struct MemoryDevice {
    nr_blocks: BlockNr,
    state: Mutex<State>,
}

impl MemoryDevice {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for MemoryDevice {
    fn nr_blocks(&self) -> BlockNr {
        self.nr_blocks
    }

    fn read(&self, block: BlockNr, data: &mut BlockData) -> Result {
        let mut state = self.state();
        state.start(Io::Read)?;
        match state
            .volatile
            .get(&block)
            .or_else(|| state.stable.get(&block))
        {
            Some(found) => data.copy_from_slice(&found[..]),
            None => data.fill(0),
        }
        Ok(())
    }

    fn write(&self, block: BlockNr, data: &BlockData) -> Result {
        let mut state = self.state();
        state.start(Io::Write)?;
        state.volatile.insert(block, Box::new(*data));
        Ok(())
    }

    fn flush(&self) -> Result {
        let mut state = self.state();
        state.start(Io::Flush)?;
        let written = std::mem::take(&mut state.volatile);
        state.stable.extend(written);
        Ok(())
    }
}

impl MemoryBm {
    /// A zeroed device of `nr_blocks` blocks. Memory is used only for blocks that are written or read.
    pub fn new(nr_blocks: BlockNr) -> Self {
        Self::with_stable(nr_blocks, BTreeMap::new())
    }

    /// A device with the content of `image`, of which a part beyond the last full block is left out.
    pub fn from_image(image: &[u8]) -> Self {
        let mut stable = BTreeMap::new();
        let mut nr_blocks = 0;
        for chunk in image.chunks_exact(BLOCK_SIZE) {
            let mut data = Box::new([0; BLOCK_SIZE]);
            data.copy_from_slice(chunk);
            if data.iter().any(|&b| b != 0) {
                stable.insert(nr_blocks, data);
            }
            nr_blocks += 1;
        }
        Self::with_stable(nr_blocks, stable)
    }

    fn with_stable(nr_blocks: BlockNr, stable: BTreeMap<BlockNr, Box<BlockData>>) -> Self {
        let device = MemoryDevice {
            nr_blocks,
            state: Mutex::new(State {
                stable,
                ..State::default()
            }),
        };
        match Self::over(device, usize::MAX) {
            Ok(bm) => bm,
            Err(e) => panic!("no memory for a device of {nr_blocks} blocks: {e}"),
        }
    }

    /// The stable content of the whole device.
    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0; self.device().nr_blocks as usize * BLOCK_SIZE];
        for (block, data) in &self.device().state().stable {
            let start = *block as usize * BLOCK_SIZE;
            image[start..start + BLOCK_SIZE].copy_from_slice(&data[..]);
        }
        image
    }

    /// Adds `extra` zeroed blocks.
    pub fn grow(&mut self, extra: BlockNr) {
        self.device_mut().nr_blocks += extra;
        if let Err(e) = self.resize() {
            panic!("no memory for {extra} more blocks: {e}");
        }
    }

    /// Makes one I/O of the given kind fail with EIO: the next one for zero, the one after that for one, and
    /// so on. Replaces a fault that did not happen yet.
    pub fn fail(&self, io: Io, after: u64) {
        self.device().state().fault = Some((io, after));
    }

    /// Lets all I/O succeed; says whether a fault was still to come.
    pub fn clear_fault(&self) -> bool {
        self.device().state().fault.take().is_some()
    }

    /// What the device did so far.
    pub fn counts(&self) -> Counts {
        self.device().state().counts
    }

    /// What is left after a crash that loses all that was not flushed.
    pub fn crash(&self) -> Self {
        self.crash_keeping(|_| false)
    }

    /// What is left after a crash in which those changed blocks for which `keep` is true happened to reach
    /// stable storage, and no others.
    pub fn crash_keeping(&self, mut keep: impl FnMut(BlockNr) -> bool) -> Self {
        let mut stable = self.device().state().stable.clone();
        for block in self.unstable_blocks() {
            if keep(block) {
                match self.sealed(block) {
                    Ok(data) => stable.insert(block, data),
                    Err(e) => panic!("a crash while block {block} is held: {e}"),
                };
            }
        }
        Self::with_stable(self.device().nr_blocks, stable)
    }

    /// The blocks whose newest content is not stable.
    pub fn unstable_blocks(&self) -> Vec<BlockNr> {
        let mut blocks = self.dirty_blocks();
        blocks.extend(self.device().state().volatile.keys());
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }

    /// Changes the stable content of a block behind the cache's back, and drops the cache.
    pub fn tamper(&self, block: BlockNr, f: impl FnOnce(&mut BlockData)) {
        let mut state = self.device().state();
        let written = state.volatile.remove(&block);
        let data = state.stable.entry(block).or_insert_with(|| {
            written.unwrap_or_else(|| Box::new([0; BLOCK_SIZE])) //
        });
        f(data);
        drop(state);
        self.drop_cache();
    }
}
