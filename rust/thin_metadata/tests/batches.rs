// SPDX-License-Identifier: GPL-2.0

//! Many blocks at once.

use super::{
    model::id,
    pool, //
};
use crate::{
    Error,
    Metadata, //
};

#[test]
fn mappings_that_make_no_sense_are_refused() {
    let mut md = pool(256, 10);
    md.create_thin(id(1)).unwrap();
    let thin = md.open_thin(id(1)).unwrap();
    md.insert_blocks(&thin, &[], &mut |_| ()).unwrap();
    let bad = |begin, end| Err(Error::BadBlocks { begin, end });
    assert_eq!(
        md.insert_blocks(&thin, &[(3, 0), (3, 1)], &mut |_| ()),
        bad(3, 3)
    );
    assert_eq!(
        md.insert_blocks(&thin, &[(3, 0), (4, 1), (2, 1)], &mut |_| ()),
        bad(4, 2)
    );
    assert_eq!(
        md.insert_blocks(&thin, &[(3, 0), (4, 10), (5, 1)], &mut |_| ()),
        bad(10, 11)
    );
    assert_eq!(md.put_back_data_blocks(3..11), bad(3, 11));
    assert_eq!(md.mapped_count(&thin), Ok(0));
    assert!(!md.needs_abort());

    let mut nothing = |_| panic!("there is nothing to give");
    assert_eq!(md.alloc_data_blocks(0, &mut |_| true, &mut nothing), Ok(0));
    assert_eq!(
        md.alloc_data_blocks(5, &mut |_| false, &mut nothing),
        Err(Error::NoDataSpace)
    );
    assert!(!md.needs_abort());
    md.close_thin(&thin);
}

#[test]
fn data_blocks_are_taken_in_the_order_of_single_ones() {
    let usable = |block: u64| !(6..8).contains(&block) && block != 11;
    let mut md = pool(256, 20);
    let take = |md: &mut Metadata<_>, n| {
        let mut blocks = Vec::new();
        let taken = md.alloc_data_blocks(n, &mut |b| usable(b), &mut |run| blocks.extend(run))?;
        assert_eq!(taken as usize, blocks.len());
        Ok(blocks)
    };
    assert_eq!(take(&mut md, 3), Ok(vec![0, 1, 2]));
    assert_eq!(take(&mut md, 7), Ok(vec![3, 4, 5, 8, 9, 10, 12]));
    // What is put back comes next.
    md.put_back_data_blocks(12..13).unwrap();
    md.put_back_data_blocks(9..11).unwrap();
    assert_eq!(take(&mut md, 4), Ok(vec![9, 10, 12, 13]));
    assert_eq!(take(&mut md, 100), Ok((14..20).collect()));
    assert_eq!(take(&mut md, 1), Err(Error::NoDataSpace));
    assert_eq!(md.free_data_blocks(), Ok(3));
}
