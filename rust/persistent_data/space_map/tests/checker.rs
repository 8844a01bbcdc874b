// SPDX-License-Identifier: GPL-2.0

//! The second opinion on counts: it must differ where it should.

use super::world::World;
use crate::{
    error::{
        Corruption,
        Error,
        Result, //
    },
    space_map::{
        counts::Counts,
        index::TreeIndex,
        Change, //
    },
    transaction::Transaction,
};

/// Counts of 40,000 blocks, of which some are in use; and the same blocks once more, changed behind their back as
/// `change` says. What has the first checker to say?
fn changed_elsewhere(change: Change, blocks: core::ops::Range<u64>) -> Result<Result> {
    let mut w = World::new(200, 0)?;
    let mut tx = w.tm.tx(&w.bm);
    let index = TreeIndex::create(&mut tx)?;
    let mut counts = Counts::create(&mut tx, index)?;
    counts.extend(&mut tx, 40_000)?;
    for (blocks, n) in [
        (16_000..17_500, 1),
        (16_300..16_400, 4),
        (0..1, 2),
        (39_999..40_000, 3),
    ] {
        for _ in 0..n {
            counts.change(
                &mut tx,
                [(Change::Inc, blocks.clone())].into_iter(),
                &mut |_| (),
            )?;
        }
    }
    counts.index.commit(&mut tx)?;
    counts.check_all(tx.bm())?;

    // What was made in this transaction is changed in place.
    let root = counts.root();
    let mut other = Counts::open(tx.bm(), TreeIndex::open(root.bitmap_root.get())?, &root)?;
    other.change(&mut tx, [(change, blocks)].into_iter(), &mut |_| ())?;
    other.index.commit(&mut tx)?;
    assert_eq!(other.root().bitmap_root, root.bitmap_root);
    assert_eq!(other.root().ref_count_root, root.ref_count_root);
    other.check_all(tx.bm())?;
    Ok(counts.check_all(tx.bm()))
}

#[test]
fn each_difference_is_seen() -> Result {
    for (change, block) in [
        // In pages of which none, some and all blocks are in use, at their edges, and in each bitmap.
        (Change::Inc, 1),
        (Change::Dec, 0),
        (Change::Inc, 2_048),
        (Change::Inc, 3_071),
        (Change::Inc, 16_319),
        (Change::Inc, 16_320),
        (Change::Dec, 17_000),
        (Change::Inc, 17_500),
        (Change::Inc, 32_639),
        (Change::Inc, 32_640),
        // In the tree: with nothing to be seen in the bitmap, and when it gets and loses one.
        (Change::Inc, 16_300),
        (Change::Dec, 16_399),
        (Change::Inc, 39_999),
        (Change::Dec, 39_999),
    ] {
        let found = changed_elsewhere(change, block..block + 1)?;
        let corrupt = matches!(found, Err(Error::Corrupt(_, Corruption::SpaceMapIndex)));
        assert!(corrupt, "{block}: {found:?}");
    }
    assert_eq!(changed_elsewhere(Change::Inc, 5..5)?, Ok(()));
    Ok(())
}
