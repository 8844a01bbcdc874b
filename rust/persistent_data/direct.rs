// SPDX-License-Identifier: GPL-2.0

//! A block manager for programs that read the metadata of a pool in use.
//!
//! dm-bufio writes past the page cache, which may therefore hold what a metadata device contained long ago. So the
//! device is read with `O_DIRECT`. As nobody reads ahead then, what the library asks for in advance is collected until
//! a block is read, and some threads read it in runs of adjacent blocks.

use std::{
    collections::{
        HashMap,
        VecDeque, //
    },
    fs::{
        File,
        OpenOptions, //
    },
    hash::{
        BuildHasherDefault,
        Hasher, //
    },
    io::{
        self,
        Seek,
        SeekFrom, //
    },
    ops::{
        Deref,
        DerefMut, //
    },
    os::unix::fs::{
        FileExt,
        OpenOptionsExt, //
    },
    path::Path,
    sync::{
        mpsc,
        Arc,
        Mutex,
        MutexGuard,
        OnceLock,
        PoisonError, //
    },
    thread::{
        self,
        JoinHandle, //
    },
};

use rustix::fs::OFlags;

use crate::{
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
    error::{
        Error,
        Result, //
    },
};

#[cfg(test)]
mod tests;

/// The most blocks that are read at once: 512 KiB.
const RUN_LEN: usize = 128;

/// So many blocks that nobody wants are read to make one run of two.
const GAP_LEN: u64 = 4;

/// The number of blocks that the cache has memory for: 32 MiB.
const CACHE_LIMIT: usize = 8192;

/// The number of blocks that are collected at most before they are read.
const WANTED_LIMIT: usize = 1024;

/// Memory for a run of more blocks is used again.
const SMALL_LEN: usize = RUN_LEN / 16;

/// The most buffers that are kept to be used again.
const SPARE_LIMIT: usize = 16;

/// So many threads read ahead.
const NR_THREADS: usize = 4;

const EIO: i32 = 5;

/// What a block is that could not be read.
static ZEROES: BlockData = [0; BLOCK_SIZE];

fn io_error(e: &io::Error) -> Error {
    Error::Io(e.raw_os_error().unwrap_or(EIO))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory for some blocks, where `O_DIRECT` wants it: at a multiple of a block's size.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new(nr_blocks: usize) -> Self {
        // One block more, so that there is a place to start at; see `Run::room`.
        let bytes = vec![0; nr_blocks.saturating_add(1).saturating_mul(BLOCK_SIZE)];
        let start = bytes.as_ptr().align_offset(BLOCK_SIZE);
        Self { bytes, start }
    }

    fn blocks(&mut self, n: usize) -> Option<&mut [u8]> {
        self.bytes
            .get_mut(self.start..)?
            .get_mut(..n.checked_mul(BLOCK_SIZE)?)
    }

    fn block(&self, index: usize) -> Option<&BlockData> {
        let begin = index.checked_mul(BLOCK_SIZE)?.checked_add(self.start)?;
        self.bytes.get(begin..)?.first_chunk()
    }
}

/// Adjacent blocks that are read at once.
struct Run {
    begin: BlockNr,
    nr_blocks: usize,
    /// What was read, once it was.
    content: OnceLock<Result<Content>>,
}

/// What a run was read as.
struct Content {
    buffer: Buffer,
    /// What the blocks were checked as, before anybody asked for them.
    validator: Option<&'static Validator>,
    /// The blocks that have passed, a bit for each.
    passed: u128,
}

const _: () = assert!(RUN_LEN <= u128::BITS as usize);

impl Run {
    fn new(begin: BlockNr, nr_blocks: usize) -> Arc<Self> {
        Arc::new(Self {
            begin,
            nr_blocks,
            content: OnceLock::new(),
        })
    }

    /// How many blocks there is memory for.
    fn room(&self) -> usize {
        match self.nr_blocks {
            n if n <= SMALL_LEN => n.saturating_add(1),
            _ => RUN_LEN + 1,
        }
    }

    /// Reads the run, and checks its blocks as what they will probably be asked for.
    fn fill(&self, file: &File, buffer: Buffer, likely: Option<&'static Validator>) {
        self.content.get_or_init(|| {
            let buffer = self.read(file, buffer).map_err(|e| io_error(&e))?;
            let mut passed = 0;
            if let Some(validator) = likely {
                for (index, block) in (self.begin..).take(self.nr_blocks).enumerate() {
                    let data = buffer.block(index);
                    if data.is_some_and(|data| (validator.check)(data, block).is_ok()) {
                        passed |= 1 << index;
                    }
                }
            }
            Ok(Content {
                buffer,
                validator: likely,
                passed,
            })
        });
    }

    /// Whether a block was found to be what `validator` wants.
    fn has_passed(&self, block: BlockNr, validator: &'static Validator) -> bool {
        let Some(Ok(content)) = self.content.get() else {
            return false;
        };
        let index = block.checked_sub(self.begin).map(u32::try_from);
        let bit = match index {
            Some(Ok(index)) => 1u128.checked_shl(index).unwrap_or(0),
            _ => 0,
        };
        content.passed & bit != 0 && content.validator.is_some_and(|v| v.is(validator))
    }

    fn read(&self, file: &File, mut buffer: Buffer) -> io::Result<Buffer> {
        let (Some(bytes), Some(offset)) = (
            buffer.blocks(self.nr_blocks),
            self.begin.checked_mul(BLOCK_SIZE as u64),
        ) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        file.read_exact_at(bytes, offset)?;
        Ok(buffer)
    }

    fn block(&self, block: BlockNr) -> &BlockData {
        let index = block.checked_sub(self.begin).map(usize::try_from);
        match (self.content.get(), index) {
            (Some(Ok(content)), Some(Ok(index))) => content.buffer.block(index).unwrap_or(&ZEROES),
            _ => &ZEROES,
        }
    }
}

/// What the cache knows of a block.
struct Entry {
    run: Arc<Run>,
    /// What the content was checked as, if it was.
    validator: Option<&'static Validator>,
}

/// Spreads the numbers of blocks, which come from the device's owner: nobody gains anything by making them collide.
#[derive(Default)]
struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(self.0 ^ u64::from(byte));
        }
    }

    fn write_u64(&mut self, n: u64) {
        // The golden ratio. A table uses the lowest and the highest bits, and those in the middle are the best.
        self.0 = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

#[derive(Default)]
struct Cache {
    entries: HashMap<BlockNr, Entry, BuildHasherDefault<BlockHasher>>,
    /// What the entries are in, the oldest first.
    runs: VecDeque<Arc<Run>>,
    /// The room of all of `runs`.
    room: usize,
    /// What shall be read ahead.
    wanted: Vec<BlockNr>,
    /// Buffers for whole runs that are not in use.
    spare: Vec<Buffer>,
    /// What the last block was checked as: the next ones probably are the same.
    likely: Option<&'static Validator>,
}

impl Cache {
    /// Forgets the oldest blocks while there are too many.
    fn shrink(&mut self) {
        while self.room > CACHE_LIMIT {
            let Some(run) = self.runs.pop_front() else {
                return;
            };
            self.room = self.room.saturating_sub(run.room());
            for block in (run.begin..).take(run.nr_blocks) {
                if let Some(entry) = self.entries.get(&block) {
                    if Arc::ptr_eq(&entry.run, &run) {
                        self.entries.remove(&block);
                    }
                }
            }
            if run.nr_blocks <= SMALL_LEN || self.spare.len() >= SPARE_LIMIT {
                continue;
            }
            let content = Arc::into_inner(run).and_then(|run| run.content.into_inner());
            if let Some(Ok(content)) = content {
                self.spare.push(content.buffer);
            }
        }
    }

    fn add(&mut self, run: &Arc<Run>, blocks: &[BlockNr]) {
        self.room = self.room.saturating_add(run.room());
        self.runs.push_back(run.clone());
        for &block in blocks {
            let entry = Entry {
                run: run.clone(),
                validator: None,
            };
            self.entries.insert(block, entry);
        }
        self.shrink();
    }

    /// Empties what shall be read ahead, and gives the runs in which to do so, with memory for them.
    fn runs_wanted(&mut self) -> Vec<Job> {
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.retain(|block| !self.entries.contains_key(block));
        wanted.sort_unstable();
        wanted.dedup();
        let near = |first: &BlockNr, block: &BlockNr| block.abs_diff(*first) < RUN_LEN as u64;
        let mut jobs = Vec::new();
        for blocks in wanted.chunk_by(|a, b| b.abs_diff(*a) <= GAP_LEN.saturating_add(1)) {
            let mut rest = blocks;
            while let Some(first) = rest.first() {
                let (blocks, after) = rest.split_at(rest.partition_point(|b| near(first, b)));
                rest = after;
                let nr_blocks = match blocks.last() {
                    Some(last) => last.abs_diff(*first) as usize + 1,
                    None => 1,
                };
                let run = Run::new(*first, nr_blocks);
                self.add(&run, blocks);
                let buffer = match nr_blocks {
                    n if n <= SMALL_LEN => Buffer::new(n),
                    _ => self.spare.pop().unwrap_or_else(|| Buffer::new(RUN_LEN)),
                };
                jobs.push(Job {
                    run,
                    buffer,
                    likely: self.likely,
                });
            }
        }
        wanted.clear();
        self.wanted = wanted;
        jobs
    }
}

/// A run to be read.
struct Job {
    run: Arc<Run>,
    /// Where to.
    buffer: Buffer,
    /// What as.
    likely: Option<&'static Validator>,
}

impl Job {
    fn work(self, file: &File) {
        self.run.fill(file, self.buffer, self.likely);
    }
}

/// The threads that read ahead.
struct Workers {
    /// `None` when they shall end.
    jobs: Option<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    fn start(file: &Arc<File>) -> Self {
        let (sender, receiver) = mpsc::channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let spawn = |_| {
            let (file, receiver) = (file.clone(), receiver.clone());
            let work = move || loop {
                let job = lock(&receiver).recv();
                match job {
                    Ok(job) => job.work(&file),
                    Err(_) => return,
                }
            };
            thread::Builder::new().spawn(work).ok()
        };
        let threads: Vec<_> = (0..NR_THREADS).filter_map(spawn).collect();
        Self {
            // Without any thread, nobody would take what is sent.
            jobs: (!threads.is_empty()).then_some(sender),
            threads,
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.jobs = None;
        // Else the device would be in use for a while longer.
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A block manager that reads a device or file directly, and does not change it.
///
/// It remembers what it has read until [`reset`](BlockManager::reset). This does not matter for a metadata snapshot
/// that is held all the time, as nothing of it changes.
pub struct DirectBm {
    file: Arc<File>,
    nr_blocks: BlockNr,
    cache: Mutex<Cache>,
    workers: OnceLock<Workers>,
}

impl DirectBm {
    /// Opens a block device or file; through the page cache where the file system has no other way.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let open = |flags: OFlags| {
            OpenOptions::new()
                .read(true)
                .custom_flags(flags.bits() as i32)
                .open(path.as_ref())
        };
        let mut file = open(OFlags::DIRECT)
            .or_else(|e| match e.kind() {
                io::ErrorKind::InvalidInput => open(OFlags::empty()),
                _ => Err(e),
            })
            .map_err(|e| io_error(&e))?;
        // A block device's metadata has no length, so ask for its end.
        let len = file.seek(SeekFrom::End(0)).map_err(|e| io_error(&e))?;
        Ok(Self {
            file: Arc::new(file),
            nr_blocks: len / BLOCK_SIZE as u64,
            cache: Mutex::default(),
            workers: OnceLock::new(),
        })
    }

    /// Starts to read what shall be read ahead.
    fn issue(&self, cache: &mut Cache) {
        if cache.wanted.is_empty() {
            return;
        }
        let jobs = cache.runs_wanted();
        if jobs.is_empty() {
            return;
        }
        let workers = self.workers.get_or_init(|| Workers::start(&self.file));
        for job in jobs {
            let left = match &workers.jobs {
                Some(sender) => sender.send(job).err().map(|e| e.0),
                None => Some(job),
            };
            if let Some(job) = left {
                job.work(&self.file);
            }
        }
    }

    /// The run that a block is in, which is read by now.
    fn load(&self, cache: &mut Cache, block: BlockNr) -> Result<Arc<Run>> {
        if block >= self.nr_blocks {
            return Err(Error::OutOfBounds(block));
        }
        self.issue(cache);
        if let Some(entry) = cache.entries.get(&block) {
            let content = entry.run.content.wait();
            // Another block of the run may be what could not be read.
            if content.is_ok() || entry.run.nr_blocks == 1 {
                return content.as_ref().map(|_| entry.run.clone()).map_err(|e| *e);
            }
        }
        let run = Run::new(block, 1);
        run.fill(&self.file, Buffer::new(1), None);
        match run.content.get() {
            Some(Err(e)) => Err(*e),
            _ => {
                cache.add(&run, &[block]);
                Ok(run)
            }
        }
    }

    fn check(
        cache: &mut Cache,
        run: Arc<Run>,
        block: BlockNr,
        validator: &'static Validator,
    ) -> Result<DirectGuard> {
        let checked = cache.entries.get(&block).and_then(|e| e.validator);
        match checked {
            Some(v) if v.is(validator) => {}
            Some(_) => return Err(Error::WrongValidator(block)),
            None => {
                cache.likely = Some(validator);
                if !run.has_passed(block, validator) {
                    (validator.check)(run.block(block), block)?;
                }
                if let Some(entry) = cache.entries.get_mut(&block) {
                    entry.validator = Some(validator);
                }
            }
        }
        Ok(DirectGuard { run, block })
    }
}

/// Access to a block of a [`DirectBm`].
pub struct DirectGuard {
    run: Arc<Run>,
    block: BlockNr,
}

impl Deref for DirectGuard {
    type Target = BlockData;

    fn deref(&self) -> &BlockData {
        self.run.block(self.block)
    }
}

impl Guard for DirectGuard {
    fn location(&self) -> BlockNr {
        self.block
    }
}

/// What does not exist: exclusive access to a block of a [`DirectBm`].
pub enum NoGuard {}

impl Deref for NoGuard {
    type Target = BlockData;

    fn deref(&self) -> &BlockData {
        match *self {}
    }
}

impl DerefMut for NoGuard {
    fn deref_mut(&mut self) -> &mut BlockData {
        match *self {}
    }
}

impl Guard for NoGuard {
    fn location(&self) -> BlockNr {
        match *self {}
    }
}

impl BlockManager for DirectBm {
    type ReadGuard<'a> = DirectGuard;
    type WriteGuard<'a> = NoGuard;

    fn nr_blocks(&self) -> BlockNr {
        self.nr_blocks
    }

    fn read(&self, block: BlockNr, validator: &'static Validator) -> Result<DirectGuard> {
        let cache = &mut *lock(&self.cache);
        let run = self.load(cache, block)?;
        Self::check(cache, run, block, validator)
    }

    fn try_read(&self, block: BlockNr, validator: &'static Validator) -> Result<DirectGuard> {
        let cache = &mut *lock(&self.cache);
        let run = match cache.entries.get(&block) {
            Some(entry) if matches!(entry.run.content.get(), Some(Ok(_))) => entry.run.clone(),
            _ => return Err(Error::WouldBlock),
        };
        Self::check(cache, run, block, validator)
    }

    fn read_raw(&self, block: BlockNr) -> Result<DirectGuard> {
        let run = self.load(&mut lock(&self.cache), block)?;
        Ok(DirectGuard { run, block })
    }

    fn write(&self, _: BlockNr, _: &'static Validator) -> Result<NoGuard> {
        Err(Error::ReadOnly)
    }

    fn write_zero(&self, _: BlockNr, _: &'static Validator) -> Result<NoGuard> {
        Err(Error::ReadOnly)
    }

    fn prefetch(&self, block: BlockNr) {
        let cache = &mut *lock(&self.cache);
        if block >= self.nr_blocks {
            return;
        }
        cache.wanted.push(block);
        if cache.wanted.len() >= WANTED_LIMIT {
            self.issue(cache);
        }
    }

    fn flush(&self) -> Result {
        Err(Error::ReadOnly)
    }

    /// Not needed: nobody writes on the strength of what is read here.
    fn flush_device(&self) -> Result {
        Ok(())
    }

    fn reset(&mut self) {
        *lock(&self.cache) = Cache::default();
    }

    fn is_read_only(&self) -> bool {
        true
    }

    /// It stays read-only.
    fn set_read_only(&self, _: bool) {}
}
