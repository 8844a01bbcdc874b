// SPDX-License-Identifier: GPL-2.0

//! What the cache does with its device, and what it refuses.

use std::cell::{
    Cell,
    RefCell, //
};

use super::*;
use crate::{
    file::FileBm,
    memory::{
        Io,
        MemoryBm, //
    },
};

static ANY: Validator = Validator {
    name: "anything",
    check: |_, _| Ok(()),
    prepare: |data, block| data[0] = block as u8,
};

static PICKY: Validator = Validator {
    name: "nothing",
    check: |_, block| Err(Error::Corrupt(block, crate::error::Corruption::Magic)),
    prepare: |_, _| (),
};

/// A device that counts.
struct Counting {
    blocks: RefCell<Vec<BlockData>>,
    reads: Cell<u64>,
}

impl Device for Counting {
    fn nr_blocks(&self) -> BlockNr {
        self.blocks.borrow().len() as u64
    }

    fn read(&self, block: BlockNr, data: &mut BlockData) -> Result {
        self.reads.set(self.reads.get() + 1);
        *data = self.blocks.borrow()[block as usize];
        Ok(())
    }

    fn write(&self, block: BlockNr, data: &BlockData) -> Result {
        self.blocks.borrow_mut()[block as usize] = *data;
        Ok(())
    }

    fn flush(&self) -> Result {
        Ok(())
    }
}

fn counting(limit: usize) -> CachedBm<Counting> {
    let device = Counting {
        blocks: RefCell::new(vec![ZEROES; 100]),
        reads: Cell::new(0),
    };
    CachedBm::over(device, limit).expect("memory")
}

#[test]
fn it_drops_what_is_clean_when_it_is_full() -> Result {
    let bm = counting(10);
    bm.write(99, &ANY)?[7] = 1;
    for _ in 0..2 {
        for block in 0..50 {
            let guard = bm.read(block, &ANY)?;
            assert_eq!((guard.location(), guard[7]), (block, 0));
        }
    }
    // None was there when it came again, and what was changed never left.
    assert_eq!(bm.device().reads.get(), 101);
    assert_eq!(bm.dirty_blocks(), [99]);
    assert_eq!(bm.read(99, &ANY)?[7], 1);
    assert_eq!(bm.device().reads.get(), 101);

    // What is held stays as well.
    let held = bm.read(3, &ANY)?;
    for block in 10..40 {
        bm.read(block, &ANY)?;
    }
    let reads = bm.device().reads.get();
    bm.read(3, &ANY)?;
    bm.forget_all();
    bm.drop_cache();
    bm.read(3, &ANY)?;
    assert_eq!(bm.device().reads.get(), reads);
    drop(held);
    // A changed block was forgotten, but for that one.
    assert_eq!(bm.read(99, &ANY)?[7], 0);
    Ok(())
}

#[test]
fn guards_that_conflict_are_errors() -> Result {
    let bm = counting(100);
    let read = bm.read(1, &ANY)?;
    assert_eq!(bm.read(1, &ANY)?.location(), 1);
    assert_eq!(bm.write(1, &ANY).err(), Some(Error::Conflict(1)));
    assert_eq!(bm.write_zero(1, &ANY).err(), Some(Error::Conflict(1)));
    drop(read);
    let write = bm.write(1, &ANY)?;
    assert_eq!(write.location(), 1);
    assert_eq!(bm.read(1, &ANY).err(), Some(Error::Conflict(1)));
    assert_eq!(bm.read_raw(1).err(), Some(Error::Conflict(1)));
    assert_eq!(bm.try_read(1, &ANY).err(), Some(Error::WouldBlock));
    drop(write);
    assert_eq!(bm.read(1, &PICKY).err(), Some(Error::WrongValidator(1)));
    let corrupt = Error::Corrupt(2, crate::error::Corruption::Magic);
    assert_eq!(bm.read(2, &PICKY).err(), Some(corrupt));
    assert_eq!(bm.write(2, &PICKY).err(), Some(corrupt));
    assert_eq!(bm.try_read(50, &ANY).err(), Some(Error::WouldBlock));
    bm.prefetch_run(50..52);
    assert_eq!(bm.try_read(51, &ANY)?.location(), 51);
    assert_eq!(bm.read(100, &ANY).err(), Some(Error::OutOfBounds(100)));
    Ok(())
}

#[test]
fn who_may_not_write_is_refused() -> Result {
    let mut bm = counting(100);
    bm.write(1, &ANY)?[7] = 9;
    bm.set_read_only(true);
    assert_eq!(bm.write(2, &ANY).err(), Some(Error::ReadOnly));
    assert_eq!(bm.write_zero(2, &ANY).err(), Some(Error::ReadOnly));
    assert_eq!(bm.write_copy(2, &ANY, &ZEROES).err(), Some(Error::ReadOnly));
    assert_eq!(bm.flush(), Err(Error::ReadOnly));
    bm.write_back(|_| true);
    assert_eq!(bm.dirty_blocks(), [1]);
    bm.set_read_only(false);
    assert_eq!(bm.sealed(1)?[..8], [1, 0, 0, 0, 0, 0, 0, 9]);
    assert_eq!(bm.sealed(60)?[..8], [0; 8]);
    bm.write_back(|block| block > 1);
    assert_eq!(bm.dirty_blocks(), [1]);
    bm.write_back(|_| true);
    assert_eq!(bm.device().blocks.borrow()[1][7], 9);
    bm.device_mut().blocks.get_mut().push(ZEROES);
    bm.resize()?;
    assert_eq!(bm.read(100, &ANY)?.location(), 100);
    Ok(())
}

#[test]
fn an_early_write_that_fails_is_told_by_the_next_flush() -> Result {
    let mut bm = MemoryBm::new(10);
    for then_reset in [false, true] {
        bm.write(1, &ANY)?[7] = 9;
        bm.fail(Io::Write, 0);
        bm.write_back(|_| true);
        assert!(!bm.clear_fault());
        bm.drop_cache();
        assert_eq!(bm.try_read(1, &ANY)?[7], 9);
        match then_reset {
            true => bm.reset(),
            false => assert_eq!(bm.flush(), Err(Error::Io(5))),
        }
        assert_eq!(bm.flush(), Ok(()));
    }
    Ok(())
}

#[test]
fn a_panic_does_not_lock_a_block_for_ever() {
    let bm = counting(100);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _guard = bm.write(1, &ANY).expect("it is free");
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_eq!(bm.read(1, &ANY).map(|guard| guard[7]), Ok(0));
    assert_eq!(bm.write(1, &ANY).map(|guard| guard[7]), Ok(0));
}

#[test]
fn files_are_devices() -> Result {
    let path = std::env::temp_dir().join(format!("persistent_data.{}", std::process::id()));
    let bm = FileBm::create(&path, 20)?;
    assert_eq!(bm.nr_blocks(), 20);
    bm.write_zero(7, &ANY)?[9] = 4;
    bm.flush()?;
    drop(bm);

    let bm = FileBm::open_read_only(&path)?;
    assert_eq!(bm.read(7, &ANY)?[9], 4);
    assert!(bm.is_read_only());
    bm.set_read_only(false);
    bm.write(7, &ANY)?[9] = 5;
    assert!(matches!(bm.flush(), Err(Error::Io(_))));
    drop(bm);

    let bm = FileBm::open(&path)?;
    assert_eq!(bm.read(7, &ANY)?[9], 4);
    std::fs::remove_file(&path).expect("the file is there");
    assert_eq!(FileBm::open(&path).err(), Some(Error::Io(2)));
    assert_eq!(FileBm::open_read_only(&path).err(), Some(Error::Io(2)));
    let beyond = FileBm::create(&path, u64::MAX).err();
    assert_eq!(beyond, Some(Error::OutOfBounds(u64::MAX)));
    std::fs::remove_file(&path).expect("the file is there");
    Ok(())
}
