// SPDX-License-Identifier: GPL-2.0

//! The rules of transactions, one by one.

use super::world::{
    World,
    SB_VALIDATOR,
    SUPERBLOCK,
    USER_VALIDATOR, //
};
use crate::{
    block::BlockNr,
    block_manager::{
        BlockManager,
        Guard, //
    },
    memory::MemoryBm,
    space_map::bitmap,
    transaction::Transaction,
    transaction_manager::NonBlocking,
    Error,
    Result, //
};

#[test]
fn shadows_copy_once() -> Result {
    let mut w = World::new(64, 0)?;
    let old = w.new_user_block()?;
    w.bm.write(old, &USER_VALIDATOR)?[100] = 7;

    // Made in this transaction: written in place.
    let s = w.tm.tx(&w.bm).shadow(old, &USER_VALIDATOR)?;
    assert_eq!((s.guard.location(), s.was_shared), (old, false));
    drop(s);
    w.commit()?;

    // Committed: copied, once.
    let s = w.tm.tx(&w.bm).shadow(old, &USER_VALIDATOR)?;
    let new = s.guard.location();
    assert_ne!(new, old);
    assert!(!s.was_shared);
    assert_eq!(s.guard[100], 7);
    drop(s);
    assert_eq!((w.metadata_count(old)?, w.metadata_count(new)?), (0, 1));
    let s = w.tm.tx(&w.bm).shadow(new, &USER_VALIDATOR)?;
    assert_eq!(s.guard.location(), new);
    drop(s);

    // Shared: copied although it was made in this transaction, and the other owner keeps it.
    w.tm.tx(&w.bm).inc(new..new + 1)?;
    let s = w.tm.tx(&w.bm).shadow(new, &USER_VALIDATOR)?;
    let third = s.guard.location();
    assert!(s.was_shared);
    assert_ne!(third, new);
    drop(s);
    assert_eq!((w.metadata_count(new)?, w.metadata_count(third)?), (1, 1));
    Ok(())
}

#[test]
fn metadata_is_not_reused_before_the_commit() -> Result {
    let mut w = World::new(64, 0)?;
    let first = w.new_user_block()?;
    w.commit()?;
    let all = w.tm.nr_free();

    // Freed, and allocated and freed: neither comes back.
    w.tm.tx(&w.bm).dec(first..first + 1)?;
    let mut seen = vec![first];
    loop {
        match w.new_user_block() {
            Ok(b) => {
                assert!(!seen.contains(&b));
                seen.push(b);
                w.tm.tx(&w.bm).dec(b..b + 1)?;
            }
            Err(e) => {
                assert_eq!(e, Error::NoSpace);
                break;
            }
        }
    }
    assert_eq!(w.tm.nr_free(), 0);
    assert!(seen.len() as u64 <= all + 1 && seen.len() as u64 > all - 4);

    // All come back after a roll back.
    let mut w = w.roll_back()?;
    assert_eq!(w.tm.nr_free(), all);
    assert_eq!(w.metadata_count(first)?, 1);
    w.tm.tx(&w.bm).dec(first..first + 1)?;
    w.commit()?;
    // One more for the block that was freed; copies made by the commit took as many as they freed.
    assert_eq!(w.tm.nr_free(), all + 1);
    Ok(())
}

#[test]
fn data_is_not_reused_before_the_commit() -> Result {
    let mut w = World::new(64, 10)?;
    let mut seen = Vec::new();
    for _ in 0..10 {
        let b = w.data.new_block(&mut w.tm.tx(&w.bm), &mut |_| true)?;
        assert!(!seen.contains(&b));
        seen.push(b);
        w.data.dec(&mut w.tm.tx(&w.bm), b..b + 1, &mut |_| ())?;
    }
    assert_eq!(w.data.nr_free(), 10);
    let again = w.data.new_block(&mut w.tm.tx(&w.bm), &mut |_| true);
    assert_eq!(again, Err(Error::NoSpace));
    w.commit()?;

    for i in 0..6 {
        assert_eq!(w.data.new_block(&mut w.tm.tx(&w.bm), &mut |_| true)?, i);
    }
    w.commit()?;
    w.data.dec(&mut w.tm.tx(&w.bm), 0..6, &mut |_| ())?;
    for i in 6..10 {
        assert_eq!(w.data.new_block(&mut w.tm.tx(&w.bm), &mut |_| true)?, i);
    }
    let again = w.data.new_block(&mut w.tm.tx(&w.bm), &mut |_| true);
    assert_eq!(again, Err(Error::NoSpace));
    w.commit()?;
    assert_eq!(w.data.new_block(&mut w.tm.tx(&w.bm), &mut |_| true)?, 0);
    Ok(())
}

#[test]
fn a_change_costs_little_metadata() -> Result {
    let mut w = World::new(1000, 16320 * 3)?;
    let free = w.tm.nr_free();
    // One bitmap, the leaf of the index; one bitmap and the index of the metadata itself.
    w.data.inc(&mut w.tm.tx(&w.bm), 0..16320)?;
    assert_eq!(free - w.tm.nr_free(), 2);
    w.data.inc(&mut w.tm.tx(&w.bm), 0..16320)?;
    assert_eq!(free - w.tm.nr_free(), 2);
    w.commit()?;
    assert_eq!(w.tm.nr_free(), free);
    Ok(())
}

#[test]
fn clean_commits_write_the_superblock_only() -> Result {
    let mut w = World::new(64, 100)?;
    let before = w.bm.counts();
    let root = w.tm.pre_commit(&w.bm)?;
    w.commit()?;
    let after = w.bm.counts();
    assert_eq!(after.writes - before.writes, 1);
    assert_eq!(after.flushes - before.flushes, 3);
    assert_eq!(root, w.tm.pre_commit(&w.bm)?);
    Ok(())
}

#[test]
fn the_superblock_is_written_last() -> Result {
    let mut w = World::new(64, 100)?;
    w.data.new_block(&mut w.tm.tx(&w.bm), &mut |_| true)?;
    let writes = |w: &World| w.bm.counts().writes;

    w.data.commit(&mut w.tm.tx(&w.bm))?;
    w.tm.pre_commit(&w.bm)?;
    assert_eq!(w.bm.unstable_blocks(), []);
    let before = writes(&w);
    let guard = w.bm.write(SUPERBLOCK, &SB_VALIDATOR)?;
    w.tm.commit(&w.bm, guard)?;
    assert_eq!(writes(&w) - before, 1);
    assert_eq!(w.bm.unstable_blocks(), []);
    Ok(())
}

#[test]
fn grows_a_full_metadata_device() -> Result {
    // The second growth needs another bitmap.
    for extra in [1, 2, 3, 50, 16320, 40000] {
        let mut w = World::new(40, 0)?;
        let mut users = Vec::new();
        while w.tm.nr_free() > 8 {
            users.push(w.new_user_block()?);
        }
        w.commit()?;
        // Full but for what the commit freed: no block is free now.
        while let Ok(b) = w.new_user_block() {
            users.push(b);
        }
        let mut w = w.roll_back()?;
        let count = users
            .iter()
            .filter(|&&b| w.metadata_count(b) == Ok(1))
            .count();
        let mut taken = count;
        while w.tm.nr_free() > 3 {
            w.new_user_block()?;
            taken += 1;
        }

        let before = w.tm.nr_free();
        w.bm.grow(extra);
        w.tm.extend(&w.bm, extra)?;
        assert_eq!(w.tm.nr_blocks(), 40 + extra);
        // The new space does not count yet.
        assert!(w.tm.nr_free() <= before);
        w.commit()?;
        let allocated = w.structure()?.len() + taken;
        assert_eq!(w.tm.nr_free(), 40 + extra - allocated as u64);

        let mut w = World::open(w.bm)?;
        assert_eq!(w.tm.nr_blocks(), 40 + extra);
        for b in w.structure()?.into_keys() {
            assert_eq!(w.metadata_count(b)?, 1);
        }
        w.commit()?;
    }
    Ok(())
}

#[test]
fn added_metadata_is_usable_at_once() -> Result {
    let mut w = World::new(20, 0)?;
    w.bm.grow(20000);
    w.tm.extend(&w.bm, 20000)?;
    for _ in 0..1000 {
        assert!(w.new_user_block()? >= 20);
    }
    w.bm.grow(5);
    w.tm.extend(&w.bm, 5)?;
    assert_eq!(w.new_user_block()?, 20020);
    w.commit()?;
    assert_eq!(w.tm.nr_blocks(), 20025);
    Ok(())
}

#[test]
fn grows_data() -> Result {
    let mut w = World::new(1000, 0)?;
    let none = w.data.new_block(&mut w.tm.tx(&w.bm), &mut |_| true);
    assert_eq!(none, Err(Error::NoSpace));
    w.data.extend(&mut w.tm.tx(&w.bm), 3)?;
    assert_eq!((w.data.nr_blocks(), w.data.nr_free()), (0, 0));
    assert_eq!(w.data.new_block(&mut w.tm.tx(&w.bm), &mut |_| true)?, 0);
    w.commit()?;
    assert_eq!((w.data.nr_blocks(), w.data.nr_free()), (3, 2));
    let too_large = w.data.extend(&mut w.tm.tx(&w.bm), u64::MAX);
    assert_eq!(too_large, Err(Error::Invalid));

    w.data.extend(&mut w.tm.tx(&w.bm), 16320 * 200)?;
    w.commit()?;
    assert_eq!(w.data.nr_blocks(), 16320 * 200 + 3);
    let last = w.data.nr_blocks() - 1;
    w.data.inc(&mut w.tm.tx(&w.bm), last - 50000..last + 1)?;
    w.commit()?;
    let w = World::open(w.bm)?;
    assert_eq!(w.data_count(last - 50000)?, 1);
    assert_eq!(w.data_count(last - 50001)?, 0);
    assert_eq!(w.data.nr_free(), last + 1 - 50002);
    Ok(())
}

#[test]
fn out_of_range() -> Result {
    let mut w = World::new(64, 100)?;
    assert_eq!(w.data_count(100), Err(Error::OutOfBounds(100)));
    assert_eq!(w.data_count(u64::MAX), Err(Error::OutOfBounds(u64::MAX)));
    assert_eq!(w.metadata_count(64), Err(Error::OutOfBounds(64)));
    let r = w.data.inc(&mut w.tm.tx(&w.bm), 99..101);
    assert_eq!(r, Err(Error::OutOfBounds(101)));
    #[expect(clippy::reversed_empty_ranges)]
    let r = w.data.inc(&mut w.tm.tx(&w.bm), 9..3);
    assert_eq!(r, Err(Error::OutOfBounds(9)));
    let r = w.data.set_count(&mut w.tm.tx(&w.bm), 100, 1);
    assert_eq!(r, Err(Error::OutOfBounds(100)));
    let r = w.data.dec(&mut w.tm.tx(&w.bm), 5..6, &mut |_| ());
    assert_eq!(r, Err(Error::RefCount(5)));
    let mut w = w.roll_back()?;
    w.data.set_count(&mut w.tm.tx(&w.bm), 5, u32::MAX)?;
    let r = w.data.inc(&mut w.tm.tx(&w.bm), 4..6);
    assert_eq!(r, Err(Error::RefCount(5)));
    Ok(())
}

#[test]
fn a_failed_count_stops_the_transaction() -> Result {
    let mut w = World::new(64, 100)?;
    let free = w.tm.nr_free();
    assert_eq!(w.tm.tx(&w.bm).dec(60..61), Err(Error::RefCount(60)));
    let again = Err(Error::RefCount(60));
    assert_eq!(w.tm.tx(&w.bm).inc(60..61), again);
    assert_eq!(w.tm.tx(&w.bm).dec(0..1), again);
    assert_eq!(w.new_user_block().map(|_| ()), again);
    assert_eq!(w.tm.extend(&w.bm, 1), again);
    assert_eq!(w.tm.pre_commit(&w.bm).map(|_| ()), again);

    let mut w = w.roll_back()?;
    assert_eq!(w.tm.nr_free(), free);
    w.new_user_block()?;
    w.commit()
}

#[test]
fn a_refused_block_changes_nothing() -> Result {
    let mut w = World::new(64, 100)?;
    w.bm.set_read_only(true);
    assert_eq!(w.new_user_block(), Err(Error::ReadOnly));
    let r = w.tm.tx(&w.bm).shadow(SUPERBLOCK, &SB_VALIDATOR);
    assert_eq!(r.map(|_| ()), Err(Error::ReadOnly));
    w.bm.set_read_only(false);
    w.new_user_block()?;
    w.commit()
}

#[test]
fn threshold() -> Result {
    let mut w = World::new(64, 100)?;
    let free = w.tm.nr_free();
    w.tm.set_threshold(free - 10);
    let mut users = Vec::new();
    while w.tm.nr_free() > free - 10 {
        assert!(!w.tm.threshold_crossed());
        users.push(w.new_user_block()?);
    }
    assert!(w.tm.threshold_crossed());
    users.push(w.new_user_block()?);
    assert!(!w.tm.threshold_crossed());
    for b in &users {
        w.tm.tx(&w.bm).dec(*b..*b + 1)?;
    }
    w.commit()?;
    assert!(!w.tm.threshold_crossed());
    w.new_user_block()?;
    assert!(!w.tm.threshold_crossed());
    while w.tm.nr_free() > free - 10 {
        w.new_user_block()?;
    }
    assert!(w.tm.threshold_crossed());
    Ok(())
}

#[test]
fn readers_that_do_not_wait() -> Result {
    let mut w = World::new(64, 100)?;
    let block = w.new_user_block()?;
    w.commit()?;
    w.bm.drop_cache();
    let reader = NonBlocking::new(&w.bm, w.tm.prefetches());
    let read = || crate::block_manager::Reader::read(reader, block, &USER_VALIDATOR).map(|_| ());
    assert_eq!(read(), Err(Error::WouldBlock));
    let reads = w.bm.counts().reads;
    w.tm.prefetches().issue(&w.bm);
    assert_eq!(w.bm.counts().reads, reads + 1);
    assert_eq!(read(), Ok(()));
    w.tm.prefetches().issue(&w.bm);
    assert_eq!(w.bm.counts().reads, reads + 1);
    // Look-ups of counts go the same way.
    assert_eq!(w.data.get_count(reader, 0), Err(Error::WouldBlock));
    Ok(())
}

#[test]
fn guards_conflict_instead_of_waiting() -> Result {
    let w = World::new(64, 100)?;
    let a = w.bm.read(SUPERBLOCK, &SB_VALIDATOR)?;
    let b = w.bm.read(SUPERBLOCK, &SB_VALIDATOR)?;
    let conflict = Err(Error::Conflict(SUPERBLOCK));
    let write = || w.bm.write(SUPERBLOCK, &SB_VALIDATOR).map(|_| ());
    assert_eq!(write(), conflict);
    drop((a, b));
    let guard = w.bm.write(SUPERBLOCK, &SB_VALIDATOR)?;
    assert_eq!(w.bm.read(SUPERBLOCK, &SB_VALIDATOR).map(|_| ()), conflict);
    assert_eq!(w.bm.flush(), conflict);
    drop(guard);
    assert_eq!(
        w.bm.read(SUPERBLOCK, &bitmap::VALIDATOR).map(|_| ()),
        Err(Error::WrongValidator(SUPERBLOCK))
    );
    let beyond: BlockNr = 64;
    assert_eq!(
        w.bm.read(beyond, &SB_VALIDATOR).map(|_| ()),
        Err(Error::OutOfBounds(beyond))
    );
    Ok(())
}

#[test]
fn blocks_are_checked_when_they_are_loaded() -> Result {
    let mut w = World::new(64, 100)?;
    let block = w.new_user_block()?;
    w.commit()?;
    w.bm.tamper(block, |data| data[9] ^= 1);
    assert_eq!(
        w.bm.read(block, &USER_VALIDATOR).map(|_| ()),
        Err(Error::WrongLocation {
            block,
            found: block ^ 256
        })
    );
    w.bm.tamper(block, |data| data[9] ^= 1);
    let image = w.bm.image();
    assert!(w.bm.read(block, &USER_VALIDATOR).is_ok());
    let w = World::open(MemoryBm::from_image(&image))?;
    assert_eq!(w.metadata_count(block)?, 1);
    Ok(())
}
