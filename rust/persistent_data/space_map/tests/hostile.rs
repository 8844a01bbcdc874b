// SPDX-License-Identifier: GPL-2.0

//! Metadata that somebody made up: errors, but no panic and no endless loop.

use proptest::prelude::*;

use super::world::{
    le64,
    Superblock,
    World,
    SB_VALIDATOR,
    SUPERBLOCK,
    USER_VALIDATOR, //
};
use crate::{
    block::{
        BlockData,
        BlockNr,
        Validator, //
    },
    block_manager::BlockManager,
    btree,
    error::Corruption,
    memory::MemoryBm,
    space_map::{
        bitmap,
        index_block,
        SmRoot, //
    },
    transaction::Transaction,
    transaction_manager::TransactionManager,
    Error,
    Result, //
};

/// A committed world with counts above two in both maps, and a few blocks of the test's own.
fn victim() -> Result<World> {
    let mut w = World::new(200, 40000)?;
    for i in 0..20 {
        let b = w.new_user_block()?;
        for _ in 0..i % 4 {
            w.tm.tx(&w.bm).inc(b..b + 1)?;
        }
    }
    w.data.inc(&mut w.tm.tx(&w.bm), 0..700)?;
    w.data.inc(&mut w.tm.tx(&w.bm), 0..600)?;
    w.data.inc(&mut w.tm.tx(&w.bm), 0..500)?;
    w.data.inc(&mut w.tm.tx(&w.bm), 16300..16340)?;
    w.commit()?;
    Ok(w)
}

/// Changes a block of the device, with a right checksum.
fn forge(bm: &MemoryBm, block: BlockNr, validator: &Validator, f: impl FnOnce(&mut BlockData)) {
    bm.tamper(block, |data| {
        f(data);
        (validator.prepare)(data, block);
    });
}

fn roots(bm: &MemoryBm) -> Result<(SmRoot, SmRoot)> {
    let guard = bm.read(SUPERBLOCK, &SB_VALIDATOR)?;
    let sb = Superblock::of(&guard);
    Ok((sb.metadata, sb.data))
}

/// Uses everything. As a transaction ends with its first error, there are many.
fn exercise(bm: MemoryBm) {
    let attempt = |f: &mut dyn FnMut(&mut World) -> Result| {
        let Ok(mut w) = World::open(bm.crash()) else {
            return;
        };
        if f(&mut w).is_ok() && w.commit().is_ok() {
            let _ = World::open(w.bm).map(|mut w| w.commit());
        }
    };

    attempt(&mut |w| {
        for b in (0..40100).step_by(37) {
            let _ = w.data_count(b);
            let _ = w.metadata_count(b);
        }
        Ok(())
    });
    attempt(&mut |w| w.data.inc(&mut w.tm.tx(&w.bm), 0..20000));
    attempt(&mut |w| w.data.dec(&mut w.tm.tx(&w.bm), 0..500, &mut |_| ()));
    attempt(&mut |w| w.data.set_count(&mut w.tm.tx(&w.bm), 10, 0));
    attempt(&mut |w| w.data.extend(&mut w.tm.tx(&w.bm), 50000));
    attempt(&mut |w| {
        for _ in 0..3 {
            w.data.new_block(&mut w.tm.tx(&w.bm), &mut |_| true)?;
        }
        Ok(())
    });
    for start in [0, 20, 100] {
        attempt(&mut |w| {
            for b in start..start + 20 {
                w.tm.tx(&w.bm).inc(b..b + 1)?;
                w.tm.tx(&w.bm).inc(b..b + 2)?;
            }
            Ok(())
        });
        attempt(&mut |w| {
            for b in start..start + 20 {
                w.tm.tx(&w.bm).dec(b..b + 1)?;
            }
            Ok(())
        });
        attempt(&mut |w| {
            for b in start..start + 20 {
                w.tm.tx(&w.bm).shadow(b, &USER_VALIDATOR)?;
            }
            Ok(())
        });
    }
    attempt(&mut |w| {
        w.bm.grow(20000);
        w.tm.extend(&w.bm, 20000)?;
        for _ in 0..300 {
            w.new_user_block()?;
        }
        Ok(())
    });
    attempt(&mut |w| {
        // Until it is full, or finds what is wrong.
        loop {
            w.new_user_block()?;
        }
    });
}

#[test]
fn index_entries() -> Result {
    let cases: [(usize, &[u8], Option<Corruption>); 7] = [
        // A bitmap beyond the device, and far beyond.
        (16, &200u64.to_le_bytes(), Some(Corruption::Reference)),
        (16, &u64::MAX.to_le_bytes(), Some(Corruption::Reference)),
        // More free entries than there are.
        (24, &16321u32.to_le_bytes(), Some(Corruption::SpaceMapIndex)),
        (
            24,
            &(1u32 << 31).to_le_bytes(),
            Some(Corruption::SpaceMapIndex),
        ),
        // Counted below zero on a map that grew.
        (24, &u32::MAX.to_le_bytes(), None),
        (28, &16321u32.to_le_bytes(), Some(Corruption::SpaceMapIndex)),
        // Entries behind the last are nobody's business.
        (32, &u64::MAX.to_le_bytes(), None),
    ];
    for (at, bytes, expected) in cases {
        let w = victim()?;
        let (metadata, _) = roots(&w.bm)?;
        let index = metadata.bitmap_root.get();
        forge(&w.bm, index, &index_block::VALIDATOR, |data| {
            data[at..at + bytes.len()].copy_from_slice(bytes)
        });
        let opened = TransactionManager::open(&w.bm, SUPERBLOCK, &metadata);
        match expected {
            Some(what) => assert_eq!(opened.map(|_| ()), Err(Error::Corrupt(index, what))),
            None => {
                let mut w = World::open(w.bm)?;
                w.new_user_block()?;
                w.commit()?;
                // The number of free entries is right again.
                let (metadata, _) = roots(&w.bm)?;
                let guard = w.bm.read_raw(metadata.bitmap_root.get())?;
                let nr_free = super::world::le32(&guard[..], 24);
                let in_use = metadata.nr_allocated.get() as u32;
                assert_eq!(nr_free, 16320 - in_use);
            }
        }
        exercise(w_again(at, bytes)?);
    }
    Ok(())
}

fn w_again(at: usize, bytes: &[u8]) -> Result<MemoryBm> {
    let w = victim()?;
    let (metadata, _) = roots(&w.bm)?;
    let index = metadata.bitmap_root.get();
    forge(&w.bm, index, &index_block::VALIDATOR, |data| {
        data[at..at + bytes.len()].copy_from_slice(bytes)
    });
    Ok(w.bm)
}

#[test]
fn sm_roots() -> Result {
    let w = victim()?;
    let (metadata, data) = roots(&w.bm)?;
    let open = |root: SmRoot| TransactionManager::open(&w.bm, SUPERBLOCK, &root).map(|_| ());
    let index = metadata.bitmap_root.get();
    let bad_index = Err(Error::Corrupt(index, Corruption::SpaceMapIndex));

    let mut root = metadata;
    root.nr_blocks = (255 * 16320 + 1).into();
    assert_eq!(open(root), bad_index);
    root.nr_blocks = u64::MAX.into();
    assert_eq!(open(root), bad_index);
    root = metadata;
    root.nr_allocated = 201.into();
    assert_eq!(open(root), bad_index);
    root = metadata;
    root.bitmap_root = metadata.ref_count_root;
    assert!(open(root).is_err());
    root.bitmap_root = u64::MAX.into();
    assert_eq!(open(root), Err(Error::OutOfBounds(u64::MAX)));

    // A data device larger than what there are bitmaps for.
    let mut root = data;
    root.nr_blocks = u64::MAX.into();
    let mut w = World::open(w.bm)?;
    w.data = crate::space_map::DiskSpaceMap::open(&w.bm, &root)?;
    assert_eq!(w.data_count(0)?, 3);
    assert!(w.data_count(u64::MAX - 1).is_err());
    assert!(w.data.extend(&mut w.tm.tx(&w.bm), 1).is_err());
    w.bm.reset();
    Ok(())
}

/// Makes the bitmap of the first blocks say that the superblock's is free.
fn free_the_superblock(bm: &MemoryBm) -> Result {
    let (metadata, _) = roots(bm)?;
    let guard = bm.read_raw(metadata.bitmap_root.get())?;
    let bitmap = le64(&guard[..], 16);
    drop(guard);
    forge(bm, bitmap, &bitmap::VALIDATOR, |data| data[16] &= !3);
    Ok(())
}

#[test]
fn a_superblock_that_is_free_is_told() -> Result {
    let w = victim()?;
    w.tm.check_superblock(&w.bm)?;
    free_the_superblock(&w.bm)?;
    let w = World::open(w.bm)?;
    let wanted = Err(Error::Corrupt(SUPERBLOCK, Corruption::SuperblockFree));
    assert_eq!(w.tm.check_superblock(&w.bm), wanted);
    Ok(())
}

#[test]
fn the_superblock_is_never_handed_out() -> Result {
    let w = victim()?;
    free_the_superblock(&w.bm)?;
    let mut w = World::open(w.bm)?;
    // In each of several transactions, as only the first begins with it.
    for _ in 0..3 {
        for _ in 0..20 {
            assert_ne!(w.new_user_block()?, SUPERBLOCK);
        }
        w.tm.pre_commit(&w.bm)?;
        w.tm.finish()?;
    }
    let error = loop {
        match w.new_user_block() {
            Ok(block) => assert_ne!(block, SUPERBLOCK),
            Err(e) => break e,
        }
    };
    assert_eq!(error, Error::NoSpace);
    Ok(())
}

#[test]
fn nothing_takes_or_gives_up_a_reference_to_the_superblock() -> Result {
    let wanted = Err(Error::Corrupt(SUPERBLOCK, Corruption::Reference));
    let mut w = victim()?;
    assert_eq!(w.tm.tx(&w.bm).dec(0..1), wanted);
    let mut w = w.roll_back()?;
    assert_eq!(w.tm.tx(&w.bm).inc(0..3), wanted);
    let w = w.roll_back()?;
    assert_eq!(w.metadata_count(SUPERBLOCK)?, 1);
    Ok(())
}

#[test]
fn bitmaps_that_deny_everything() -> Result {
    let w = victim()?;
    let (metadata, _) = roots(&w.bm)?;
    let guard = w.bm.read_raw(metadata.bitmap_root.get())?;
    let bitmap = le64(&guard[..], 16);
    drop(guard);
    // All blocks are free, even those that say so.
    forge(&w.bm, bitmap, &bitmap::VALIDATOR, |data| data.fill(0));
    exercise(w.bm);

    // All are in use.
    let w = victim()?;
    forge(&w.bm, bitmap, &bitmap::VALIDATOR, |data| data.fill(0xaa));
    let mut w = World::open(w.bm)?;
    assert_eq!(w.new_user_block(), Err(Error::NoSpace));
    exercise(w.bm);

    // All counts are in a tree that has a few of them.
    let w = victim()?;
    forge(&w.bm, bitmap, &bitmap::VALIDATOR, |data| data.fill(0xff));
    let mut w = World::open(w.bm)?;
    assert_eq!(w.metadata_count(0), Err(Error::RefCount(0)));
    assert!(w.tm.tx(&w.bm).inc(0..1).is_err());
    exercise(w.bm);
    Ok(())
}

#[test]
fn small_counts_in_the_tree() -> Result {
    let mut w = victim()?;
    let (_, data) = roots(&w.bm)?;
    let leaf = data.ref_count_root.get();
    // 500 counts fit two leaves at least; the first one's first value.
    let guard = w.bm.read_raw(leaf)?;
    let first = if super::world::le32(&guard[..], 4) == 2 {
        leaf
    } else {
        let max = super::world::le32(&guard[..], 20) as usize;
        le64(&guard[..], 32 + 8 * max)
    };
    drop(guard);
    for bad in [0u32, 1, 2] {
        forge(&w.bm, first, &btree::VALIDATOR, |data| {
            let max = super::world::le32(&data[..], 20) as usize;
            data[32 + 8 * max..][..4].copy_from_slice(&bad.to_le_bytes());
        });
        w = w.roll_back()?;
        assert_eq!(w.data_count(0), Err(Error::RefCount(0)));
        let r = w.data.dec(&mut w.tm.tx(&w.bm), 0..1, &mut |_| ());
        assert_eq!(r, Err(Error::RefCount(0)));
        w = w.roll_back()?;
        let r = w.data.inc(&mut w.tm.tx(&w.bm), 0..1);
        assert_eq!(r, Err(Error::RefCount(0)));
        w = w.roll_back()?;
    }
    Ok(())
}

#[test]
fn trees_with_loops() -> Result {
    let w = victim()?;
    let (metadata, data) = roots(&w.bm)?;
    for root in [
        metadata.ref_count_root,
        data.ref_count_root,
        data.bitmap_root,
    ] {
        let root = root.get();
        let w = victim()?;
        // An internal node that is its own child.
        forge(&w.bm, root, &btree::VALIDATOR, |data| {
            data[4..8].copy_from_slice(&1u32.to_le_bytes());
            data[16..20].copy_from_slice(&1u32.to_le_bytes());
            data[20..24].copy_from_slice(&252u32.to_le_bytes());
            data[24..28].copy_from_slice(&8u32.to_le_bytes());
            data[32..40].fill(0);
            data[32 + 8 * 252..][..8].copy_from_slice(&root.to_le_bytes());
        });
        exercise(w.bm);
    }
    Ok(())
}

/// Which structure's block to damage.
fn targets(w: &World) -> Result<Vec<(BlockNr, &'static Validator)>> {
    let mut targets = Vec::new();
    for block in w.structure()?.into_keys() {
        for validator in [
            &index_block::VALIDATOR,
            &bitmap::VALIDATOR,
            &btree::VALIDATOR,
        ] {
            w.bm.drop_cache();
            if w.bm.read(block, validator).is_ok() {
                targets.push((block, validator));
            }
        }
    }
    Ok(targets)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn random_damage(
        damage in prop::collection::vec(
            (any::<prop::sample::Index>(), 4..4096usize, any::<u8>(), any::<bool>()),
            1..8,
        ),
    ) {
        let w = victim().unwrap();
        let targets = targets(&w).unwrap();
        for (which, at, byte, is_near) in damage {
            let (block, validator) = targets[which.index(targets.len())];
            // Headers and first entries are where it hurts.
            let at = if is_near { 4 + at % 60 } else { at };
            forge(&w.bm, block, validator, |data| data[at] = byte);
        }
        exercise(w.bm);
    }

    #[test]
    fn blocks_in_each_others_place(
        swaps in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
            1..5,
        ),
    ) {
        let w = victim().unwrap();
        let targets = targets(&w).unwrap();
        for (to, from) in swaps {
            let (to, _) = targets[to.index(targets.len())];
            let (from, validator) = targets[from.index(targets.len())];
            let copy = *w.bm.read_raw(from).unwrap();
            forge(&w.bm, to, validator, |data| *data = copy);
        }
        exercise(w.bm);
    }
}
