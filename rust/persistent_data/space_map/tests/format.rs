// SPDX-License-Identifier: GPL-2.0

//! What is on the device, byte by byte.

use super::world::{
    le32,
    le64,
    World,
    SUPERBLOCK, //
};
use crate::{
    block::{
        BlockNr,
        BLOCK_SIZE, //
    },
    block_manager::BlockManager,
    memory::MemoryBm,
    platform::crc32c,
    space_map::MAX_METADATA_BLOCKS,
    transaction::Transaction,
    transaction_manager::TransactionManager,
    Error,
    Result, //
};

fn sum(block: &[u8], xor: u32) -> u32 {
    crc32c(&block[4..]) ^ xor
}

fn block(image: &[u8], block: BlockNr) -> &[u8] {
    &image[block as usize * BLOCK_SIZE..][..BLOCK_SIZE]
}

#[test]
fn crc32c_is_the_kernels() {
    assert_eq!(crc32c(b"123456789"), !0xe306_9283);
}

#[test]
fn first_blocks() -> Result {
    let bm = MemoryBm::new(40);
    let mut tm = TransactionManager::create(&bm, SUPERBLOCK)?;
    let root = tm.pre_commit(&bm)?;
    assert_eq!(root.nr_blocks.get(), 40);
    assert_eq!(root.nr_allocated.get(), 4);
    assert_eq!(root.bitmap_root.get(), 1);
    assert_eq!(root.ref_count_root.get(), 2);

    let image = bm.image();
    let index = block(&image, 1);
    assert_eq!(le32(index, 0), sum(index, 160_478));
    assert_eq!(le64(index, 8), 1);
    assert_eq!(le64(index, 16), 3);
    assert_eq!(le32(index, 24), 16320 - 4);
    assert_eq!(le32(index, 28), 4);
    assert!(index[32..].iter().all(|&b| b == 0));

    let bitmap = block(&image, 3);
    assert_eq!(le32(bitmap, 0), sum(bitmap, 240_779));
    assert_eq!(le64(bitmap, 8), 3);
    assert_eq!(bitmap[16], 0b1010_1010);
    assert!(bitmap[17..].iter().all(|&b| b == 0));
    Ok(())
}

#[test]
fn counts_in_bitmaps_and_tree() -> Result {
    let mut w = World::new(64, 20000)?;
    for (b, n) in [(0, 1), (1, 2), (2, 3), (3, 1000), (16320, 2), (19999, 7)] {
        w.data.set_count(&mut w.tm.tx(&w.bm), b, n)?;
    }
    w.commit()?;
    let guard = w.bm.read_raw(SUPERBLOCK)?;
    let root = super::world::Superblock::of(&guard).data;
    assert_eq!(root.nr_blocks.get(), 20000);
    assert_eq!(root.nr_allocated.get(), 6);

    // The index is a tree of a single leaf here, with room for 169 entries of 16 bytes.
    let image = w.bm.image();
    let leaf = block(&image, root.bitmap_root.get());
    assert_eq!((le32(leaf, 4), le32(leaf, 16), le32(leaf, 24)), (2, 2, 16));
    let values = 32 + 8 * le32(leaf, 20) as usize;
    assert_eq!(le32(leaf, values + 8), 16320 - 4);
    assert_eq!(le32(leaf, values + 12), 4);
    assert_eq!(le32(leaf, values + 24), 16320 - 2);
    assert_eq!(le32(leaf, values + 28), 1);

    let first = block(&image, le64(leaf, values));
    assert_eq!(first[16], 0b11_11_01_10);
    let second = block(&image, le64(leaf, values + 16));
    assert_eq!(second[16], 0b01);
    assert_eq!(w.big_counts()?[1], [(2, 3), (3, 1000), (19999, 7)].into());
    Ok(())
}

#[test]
fn greatest_metadata_device() -> Result {
    assert_eq!(MAX_METADATA_BLOCKS, 255 * ((1 << 14) - 64));
    let bm = MemoryBm::new(MAX_METADATA_BLOCKS + 1000);
    let mut tm = TransactionManager::create(&bm, SUPERBLOCK)?;
    assert_eq!(tm.nr_blocks(), MAX_METADATA_BLOCKS);
    assert_eq!(tm.nr_free(), MAX_METADATA_BLOCKS - 258);
    assert_eq!(tm.extend(&bm, 1), Err(Error::Invalid));
    assert_eq!(tm.extend(&bm, u64::MAX), Err(Error::Invalid));
    assert_eq!(tm.tx(&bm).ref_count(257)?, 1);
    assert_eq!(tm.tx(&bm).ref_count(258)?, 0);
    Ok(())
}

#[test]
fn devices_that_are_too_small() {
    for n in 0..4 {
        let bm = MemoryBm::new(n);
        assert!(TransactionManager::create(&bm, SUPERBLOCK).is_err());
    }
    let bm = MemoryBm::new(4);
    assert!(TransactionManager::create(&bm, SUPERBLOCK).is_ok());
    assert!(TransactionManager::create(&bm, 4).is_err());
    assert!(TransactionManager::create(&bm, u64::MAX).is_err());
    bm.set_read_only(true);
    assert!(matches!(
        TransactionManager::create(&bm, SUPERBLOCK),
        Err(Error::ReadOnly)
    ));
}
