// SPDX-License-Identifier: GPL-2.0

//! Direct reads, against what was written to files.

use std::{
    fs,
    path::{
        Path,
        PathBuf, //
    },
    sync::atomic::{
        AtomicU64,
        Ordering, //
    },
};

use proptest::prelude::*;

use super::*;
use crate::btree::tests::cases;

/// Accepts blocks that begin with their number.
static NUMBERED: Validator = Validator {
    name: "numbered",
    check: |data, block| match data.first_chunk() {
        Some(bytes) if u64::from_le_bytes(*bytes) == block => Ok(()),
        _ => Err(Error::WrongLocation { block, found: 0 }),
    },
    prepare: |_, _| (),
};

static ANY: Validator = Validator {
    name: "any",
    check: |_, _| Ok(()),
    prepare: |_, _| (),
};

/// A file whose blocks begin with their numbers, removed when dropped.
struct Image(PathBuf);

impl Image {
    fn new(folder: &Path, nr_blocks: u64) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("persistent_data.{}.{n}", std::process::id()));
        let file = File::create_new(&path).unwrap();
        file.set_len(nr_blocks * BLOCK_SIZE as u64 + 100).unwrap();
        for block in 0..nr_blocks {
            file.write_all_at(&block.to_le_bytes(), block * BLOCK_SIZE as u64)
                .unwrap();
        }
        Self(path)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// On a disk, where direct reads work, and in memory, where they may not.
fn folders() -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("/var/tmp")];
    folders.extend(Some(PathBuf::from("/dev/shm")).filter(|path| path.is_dir()));
    folders
}

#[test]
fn blocks_are_what_the_file_holds_whatever_was_read_ahead() {
    const NR_BLOCKS: u64 = 12_000;
    for folder in folders() {
        let image = Image::new(&folder, NR_BLOCKS);
        let bm = Mutex::new(DirectBm::open(&image.0).unwrap());
        assert_eq!(lock(&bm).nr_blocks(), NR_BLOCKS);
        let block = || {
            prop_oneof![
                4 => 0..NR_BLOCKS,
                1 => NR_BLOCKS - 3..NR_BLOCKS + 3,
                1 => Just(u64::MAX),
            ]
        };
        let ahead = prop::collection::vec((block(), 1..400u64, 1..9u64), 0..12);
        let reads = prop::collection::vec((block(), 0..400u64), 1..40);
        proptest!(cases(24), |(ahead in ahead, reads in reads, reset in 0..8u32)| {
            let bm = &mut *lock(&bm);
            if reset == 0 {
                bm.reset();
            }
            for (begin, n, step) in ahead {
                (0..n).for_each(|i| bm.prefetch(begin.saturating_add(i * step)));
            }
            let mut held = Vec::new();
            for (begin, n) in reads {
                for block in (0..n).map(|i| begin.saturating_add(i)) {
                    match bm.read(block, &NUMBERED) {
                        Ok(guard) => {
                            prop_assert!(block < NR_BLOCKS);
                            prop_assert_eq!(guard.location(), block);
                            if n < 4 {
                                held.push(guard);
                            }
                        }
                        Err(e) => {
                            prop_assert!(block >= NR_BLOCKS);
                            prop_assert_eq!(e, Error::OutOfBounds(block));
                        }
                    }
                }
            }
            for guard in held {
                prop_assert_eq!((NUMBERED.check)(&guard, guard.location()), Ok(()));
            }
            let cache = lock(&bm.cache);
            let has_room = |run: &Arc<Run>| match run.content.get() {
                Some(Ok(content)) => content.buffer.bytes.len() <= run.room() * BLOCK_SIZE,
                _ => true,
            };
            prop_assert!(cache.runs.iter().all(has_room));
            let room: usize = cache.runs.iter().map(|run| run.room()).sum();
            prop_assert_eq!(room, cache.room);
            prop_assert!(room <= CACHE_LIMIT);
            prop_assert!(cache.entries.len() <= room);
            prop_assert!(cache.spare.len() <= SPARE_LIMIT);
        });
    }
}

#[test]
fn what_is_read_ahead_must_pass_its_check() {
    for folder in folders() {
        let image = Image::new(&folder, 100);
        let mut block = [0; BLOCK_SIZE];
        block.fill(0xa5);
        let file = OpenOptions::new().write(true).open(&image.0).unwrap();
        file.write_all_at(&block, 7 * BLOCK_SIZE as u64).unwrap();
        let bm = DirectBm::open(&image.0).unwrap();
        // From here on it is known what blocks are read as.
        bm.read(0, &NUMBERED).unwrap();
        (1..20).for_each(|block| bm.prefetch(block));
        for block in 1..20 {
            assert_eq!(bm.read(block, &NUMBERED).is_ok(), block != 7);
        }
        assert!(bm.read(7, &NUMBERED).is_err());
    }
}

#[test]
fn what_is_read_ahead_is_there() {
    let image = Image::new(&folders()[0], 1000);
    let bm = DirectBm::open(&image.0).unwrap();
    assert!(matches!(bm.try_read(70, &NUMBERED), Err(Error::WouldBlock)));
    for block in (10..300).chain(400..402).chain([406, 900, 20, 900]) {
        bm.prefetch(block);
    }
    bm.read(10, &NUMBERED).unwrap();
    // 10 to 299 in runs of 128, 400 to 406 together, 900.
    let runs: Vec<_> = lock(&bm.cache)
        .runs
        .iter()
        .map(|run| (run.begin, run.nr_blocks))
        .collect();
    let wanted = [(10, 128), (138, 128), (266, 34), (400, 7), (900, 1)];
    assert_eq!(runs, wanted);
    bm.read(900, &NUMBERED).unwrap();
    while lock(&bm.cache)
        .runs
        .iter()
        .any(|run| run.content.get().is_none())
    {
        thread::yield_now();
    }
    assert_eq!(bm.try_read(299, &NUMBERED).map(|g| g.location()), Ok(299));
    // What was read to bridge a gap is nobody's.
    assert!(matches!(
        bm.try_read(404, &NUMBERED),
        Err(Error::WouldBlock)
    ));
}

#[test]
fn a_block_is_checked_as_what_it_is_read_as() {
    let image = Image::new(&folders()[0], 10);
    let file = OpenOptions::new().write(true).open(&image.0).unwrap();
    file.write_all_at(&[9], 3 * BLOCK_SIZE as u64).unwrap();
    let mut bm = DirectBm::open(&image.0).unwrap();
    let wrong = Error::WrongLocation { block: 3, found: 0 };
    for _ in 0..2 {
        assert_eq!(bm.read(3, &NUMBERED).err(), Some(wrong));
    }
    bm.read_raw(3).unwrap();
    bm.read(3, &ANY).unwrap();
    assert_eq!(bm.read(3, &NUMBERED).err(), Some(Error::WrongValidator(3)));
    assert_eq!(
        bm.try_read(3, &NUMBERED).err(),
        Some(Error::WrongValidator(3))
    );

    // What is remembered stays, until it is forgotten.
    file.write_all_at(&[3], 3 * BLOCK_SIZE as u64).unwrap();
    assert_eq!(bm.read_raw(3).unwrap()[0], 9);
    bm.reset();
    bm.read(3, &NUMBERED).unwrap();
}

#[test]
fn errors_are_those_of_the_block() {
    let image = Image::new(&folders()[0], 40);
    let bm = DirectBm::open(&image.0).unwrap();
    let file = OpenOptions::new().write(true).open(&image.0).unwrap();
    file.set_len(20 * BLOCK_SIZE as u64).unwrap();
    (0..40).for_each(|block| bm.prefetch(block));
    for block in 0..40 {
        match bm.read(block, &NUMBERED) {
            Ok(_) => assert!(block < 20),
            Err(e) => assert_eq!((e, block >= 20), (Error::Io(EIO), true)),
        }
    }
}

#[test]
fn nothing_is_written() {
    let image = Image::new(&folders()[0], 4);
    let bm = DirectBm::open(&image.0).unwrap();
    bm.set_read_only(false);
    assert!(bm.is_read_only());
    assert_eq!(bm.write(1, &ANY).err(), Some(Error::ReadOnly));
    assert_eq!(bm.write_zero(1, &ANY).err(), Some(Error::ReadOnly));
    assert_eq!(bm.flush().err(), Some(Error::ReadOnly));
    assert!(matches!(DirectBm::open("/nonexistent"), Err(Error::Io(2))));
}

#[test]
fn where_nothing_can_be_read_directly_it_is_read_otherwise() {
    // No file in there can be.
    let path = "/sys/kernel/uevent_seqnum";
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(path);
    assert_eq!(
        direct.map_err(|e| e.kind()).err(),
        Some(io::ErrorKind::InvalidInput)
    );
    assert_eq!(DirectBm::open(path).unwrap().nr_blocks(), 1);
}
