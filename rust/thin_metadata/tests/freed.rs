// SPDX-License-Identifier: GPL-2.0

//! Data blocks whose last reference goes away: who is told, and when they are to be had again.

use persistent_data::memory::MemoryBm;

use super::{
    model::id,
    no_flush,
    pool,
    provision, //
};
use crate::{
    DataBlock,
    Error,
    Freed,
    Metadata, //
};

/// Makes a change, and gives, in order, what it was said to have freed, all of which somebody may still want after a crash.
fn freed_by(
    md: &mut Metadata<MemoryBm>,
    change: impl FnOnce(&mut Metadata<MemoryBm>, &mut dyn FnMut(Freed)) -> crate::Result,
) -> Vec<DataBlock> {
    let mut blocks = Vec::new();
    change(md, &mut |freed| {
        assert!(freed.maybe_shared);
        blocks.extend(freed.blocks);
    })
    .expect("a change");
    blocks.sort_unstable();
    blocks
}

#[test]
fn a_mapping_that_is_replaced_frees_what_nobody_else_has() {
    let mut md = pool(256, 40);
    md.create_thin(id(1)).unwrap();
    let origin = md.open_thin(id(1)).unwrap();
    for virtual_block in 0..10 {
        provision(&mut md, &origin, virtual_block).unwrap();
    }
    md.inc_data_range(20, 28).unwrap();
    md.create_snap(id(2), id(1)).unwrap();
    let snap = md.open_thin(id(2)).unwrap();
    md.commit().unwrap();

    // The snapshot still has them all; then two are the snapshot's alone, and then the origin has what it got.
    let freed = freed_by(&mut md, |md, freed| {
        md.insert_blocks(&origin, &[(3, 20), (4, 21), (9, 22)], freed)
    });
    assert_eq!(freed, []);
    let freed = freed_by(&mut md, |md, freed| {
        md.insert_blocks(&snap, &[(2, 23), (3, 24), (9, 25), (11, 26)], freed)
    });
    assert_eq!(freed, [3, 9]);
    let freed = freed_by(&mut md, |md, freed| md.insert_block(&origin, 3, 27, freed));
    assert_eq!(freed, [20]);
    // To be mapped to the same block is no change.
    let freed = freed_by(&mut md, |md, freed| md.insert_block(&origin, 3, 27, freed));
    assert_eq!(freed, []);
    md.close_thin(&origin);
    md.close_thin(&snap);
}

#[test]
fn a_metadata_snapshot_that_is_released_frees_what_nobody_else_has() {
    let mut md = pool(256, 40);
    md.create_thin(id(1)).unwrap();
    let thin = md.open_thin(id(1)).unwrap();
    for virtual_block in 0..10 {
        provision(&mut md, &thin, virtual_block).unwrap();
    }
    md.inc_data_range(30, 31).unwrap();
    md.reserve_metadata_snap(no_flush).unwrap();
    md.commit().unwrap();

    let mut freed = freed_by(&mut md, |md, freed| md.insert_block(&thin, 2, 30, freed));
    freed.extend(freed_by(&mut md, |md, freed| {
        md.remove_range(&thin, 5, 8, freed)
    }));
    assert_eq!(freed, []);
    let freed = freed_by(&mut md, |md, freed| md.release_metadata_snap(freed));
    assert_eq!(freed, [2, 5, 6, 7]);
    md.close_thin(&thin);
}

#[test]
fn a_block_that_was_taken_and_freed_in_one_transaction_is_to_be_had_after_the_commit() {
    let mut md = pool(256, 4);
    md.create_thin(id(1)).unwrap();
    let thin = md.open_thin(id(1)).unwrap();
    md.commit().unwrap();
    assert_eq!(md.free_data_blocks(), Ok(4));

    // Freed by removal, by replacement, and before it was mapped.
    assert_eq!(provision(&mut md, &thin, 0), Ok(0));
    md.remove_range(&thin, 0, 1, &mut |_| ()).unwrap();
    assert_eq!(provision(&mut md, &thin, 1), Ok(1));
    assert_eq!(provision(&mut md, &thin, 1), Ok(2));
    assert_eq!(md.alloc_data_block(&mut |_| true), Ok(3));
    md.dec_data_range(3, 4).unwrap();

    // They count as free at once, and are not handed out before the commit.
    assert_eq!(md.free_data_blocks(), Ok(3));
    assert_eq!(md.alloc_data_block(&mut |_| true), Err(Error::NoDataSpace));
    md.commit().unwrap();
    assert_eq!(md.free_data_blocks(), Ok(3));
    let mut taken = Vec::new();
    let result = md.alloc_data_blocks(9, &mut |_| true, &mut |run| taken.extend(run));
    assert_eq!((result, taken), (Ok(3), vec![0, 1, 3]));
    md.close_thin(&thin);
}
