// SPDX-License-Identifier: GPL-2.0

//! What must not grow with the device, nor with the number of blocks.

use std::cell::Cell;

use super::world::World;
use crate::{
    block::{
        BlockNr,
        BlockRange,
        Validator, //
    },
    block_manager::WriteGuard,
    memory::MemoryBm,
    space_map::bitmap::NR_ENTRIES,
    transaction::{
        Shadow,
        Transaction, //
    },
    transaction_manager::Tx,
    Error,
    Result, //
};

/// The blocks of a bitmap.
const BITMAP: BlockNr = NR_ENTRIES as BlockNr;

/// A transaction that counts how often it is used to look at blocks, and to change one.
struct Counting<'t, 'b> {
    tx: Tx<'t, 'b, MemoryBm>,
    looks: Cell<usize>,
    shadows: usize,
}

impl<'b> Transaction<'b> for Counting<'_, 'b> {
    type Bm = MemoryBm;

    fn bm(&self) -> &'b MemoryBm {
        self.looks.set(self.looks.get() + 1);
        self.tx.bm()
    }

    fn new_block(&mut self, validator: &'static Validator) -> Result<WriteGuard<'b, MemoryBm>> {
        self.tx.new_block(validator)
    }

    fn shadow(
        &mut self,
        block: BlockNr,
        validator: &'static Validator,
    ) -> Result<Shadow<'b, MemoryBm>> {
        self.shadows += 1;
        self.tx.shadow(block, validator)
    }

    fn inc(&mut self, blocks: BlockRange) -> Result {
        self.tx.inc(blocks)
    }

    fn dec(&mut self, blocks: BlockRange) -> Result {
        self.tx.dec(blocks)
    }

    fn ref_count(&self, block: BlockNr) -> Result<u32> {
        self.tx.ref_count(block)
    }
}

/// Looks for a data block; gives what was found, and how often blocks were looked at.
fn allocate(w: &mut World, usable: &mut dyn FnMut(BlockNr) -> bool) -> (Result<BlockNr>, usize) {
    let mut tx = Counting {
        tx: w.tm.tx(&w.bm),
        looks: Cell::new(0),
        shadows: 0,
    };
    let found = w.data.new_block(&mut tx, usable);
    (found, tx.looks.get())
}

#[test]
fn a_full_device_is_searched_once() -> Result {
    const N: BlockNr = 20;
    let mut w = World::new(400, N * BITMAP)?;
    w.data.inc(&mut w.tm.tx(&w.bm), 0..N * BITMAP)?;
    w.commit()?;
    let full = Err(Error::NoSpace);

    let (found, _) = allocate(&mut w, &mut |_| true);
    assert_eq!(found, full);
    for _ in 0..3 {
        // After a commit with changes, and one without.
        w.new_user_block()?;
        w.commit()?;
        assert_eq!(allocate(&mut w, &mut |_| true), (full, 0));
        w.data.look_again()?;
        assert_eq!(allocate(&mut w, &mut |_| true), (full, 0));
    }

    // What is freed is found after the commit, and nothing else is looked at.
    let freed = 13 * BITMAP + 77;
    w.data
        .dec(&mut w.tm.tx(&w.bm), freed..freed + 2, &mut |_| ())?;
    let (found, looks) = allocate(&mut w, &mut |_| true);
    assert_eq!(found, full);
    assert!(looks <= 4, "{looks}");
    w.commit()?;
    for block in [freed, freed + 1] {
        let (found, looks) = allocate(&mut w, &mut |_| true);
        assert_eq!(found, Ok(block));
        assert!(looks <= 4, "{looks}");
    }
    w.data
        .dec(&mut w.tm.tx(&w.bm), freed..freed + 1, &mut |_| ())?;
    w.commit()?;
    w.data.set_count(&mut w.tm.tx(&w.bm), 5 * BITMAP, 0)?;
    w.data.set_count(&mut w.tm.tx(&w.bm), freed, 1)?;
    w.commit()?;
    assert_eq!(allocate(&mut w, &mut |_| true).0, Ok(5 * BITMAP));
    assert_eq!(allocate(&mut w, &mut |_| true).0, full);

    // What is added is found at once, and what is put back.
    w.data.extend(&mut w.tm.tx(&w.bm), 10)?;
    w.commit()?;
    let (found, looks) = allocate(&mut w, &mut |_| true);
    assert_eq!(found, Ok(N * BITMAP));
    assert!(looks <= 4, "{looks}");
    w.data
        .new_run(&mut w.tm.tx(&w.bm), 9, &mut |_| true)?
        .expect("nine more");
    assert_eq!(allocate(&mut w, &mut |_| true).0, full);
    w.data
        .put_back(&mut w.tm.tx(&w.bm), N * BITMAP + 3..N * BITMAP + 5)?;
    assert_eq!(allocate(&mut w, &mut |_| true).0, Ok(N * BITMAP + 3));
    Ok(())
}

#[test]
fn blocks_that_are_not_usable_are_skipped_together() -> Result {
    const N: BlockNr = 4;
    let mut w = World::new(200, N * BITMAP)?;
    w.data.inc(&mut w.tm.tx(&w.bm), 0..N * BITMAP)?;
    w.commit()?;
    let free = BITMAP..BITMAP + 3000;
    w.data.dec(&mut w.tm.tx(&w.bm), free, &mut |_| ())?;
    w.commit()?;

    for _ in 0..3 {
        let (found, looks) = allocate(&mut w, &mut |_| false);
        assert_eq!(found, Err(Error::NoSpace));
        assert!(looks <= 4 * N as usize, "{looks}");
        w.data.look_again()?;
    }
    let (found, looks) = allocate(&mut w, &mut |block| block >= BITMAP + 2900);
    assert_eq!(found, Ok(BITMAP + 2900));
    assert!(looks <= 4 * N as usize, "{looks}");
    Ok(())
}

#[test]
fn counts_that_outgrow_their_bitmap_move_together() -> Result {
    const N: BlockNr = 3200;
    let mut w = World::new(200, BITMAP)?;
    for _ in 0..2 {
        w.data.inc(&mut w.tm.tx(&w.bm), 0..N)?;
    }
    w.commit()?;
    let mut tx = Counting {
        tx: w.tm.tx(&w.bm),
        looks: Cell::new(0),
        shadows: 0,
    };
    w.data.inc(&mut tx, 0..N)?;
    // For each word of 32 blocks: the way down the tree, of two or three nodes.
    let words = N as usize / 32;
    assert!(tx.shadows <= 4 * words, "{}", tx.shadows);
    w.commit()?;
    for block in [0, 1, 31, 32, N - 1] {
        assert_eq!(w.data_count(block)?, 3);
    }
    assert_eq!(w.data_count(N)?, 0);
    assert_eq!(w.big_counts()?[1].len() as u64, N);
    Ok(())
}
