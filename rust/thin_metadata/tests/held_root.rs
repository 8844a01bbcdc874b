// SPDX-License-Identifier: GPL-2.0

//! Metadata snapshots.

use super::{
    check_with_tools,
    errno,
    model::{
        id,
        Model, //
    },
    no_flush,
    pool,
    provision,
    reopen,
    tools, //
};
use crate::{
    Error,
    Metadata,
    View, //
};

#[test]
fn one_snapshot_is_held_at_most() {
    let mut md = pool(256, 10);
    assert_eq!(md.metadata_snap(), Ok(None));
    assert_eq!(errno(md.release_metadata_snap(&mut |_| ())), 22);
    md.reserve_metadata_snap(no_flush).unwrap();
    let block = md.metadata_snap().unwrap().expect("it is held");
    assert_eq!(errno(md.reserve_metadata_snap(no_flush)), 16);
    assert_eq!(
        md.reserve_metadata_snap(|| panic!("nothing to commit")),
        Err(Error::SnapHeld(block))
    );
    md.release_metadata_snap(&mut |_| ()).unwrap();
    assert_eq!(md.metadata_snap(), Ok(None));
    assert_eq!(md.release_metadata_snap(&mut |_| ()), Err(Error::NoSnap));
    assert!(!md.needs_abort());
    md.commit().unwrap();
    check_with_tools(&md, &Model::new(10));
}

#[test]
fn a_crash_brings_back_what_it_refers_to() {
    let mut md = pool(256, 10);
    md.create_thin(id(1)).unwrap();
    let thin = md.open_thin(id(1)).unwrap();
    for virtual_block in 0..4 {
        provision(&mut md, &thin, virtual_block).unwrap();
    }
    md.reserve_metadata_snap(no_flush).unwrap();
    md.commit().unwrap();
    let mut told = Vec::new();
    let mut remove = |md: &mut Metadata<_>, block| {
        let mut freed = Vec::new();
        md.remove_range(&thin, block, block + 1, &mut |f| freed.push(f))
            .unwrap();
        told.push(freed.iter().map(|f| f.maybe_shared).collect::<Vec<_>>());
    };
    // It is in use, then wanted again after a crash, and nobody's at last.
    remove(&mut md, 0);
    md.release_metadata_snap(&mut |_| ()).unwrap();
    remove(&mut md, 1);
    md.abort().unwrap();
    md.release_metadata_snap(&mut |_| ()).unwrap();
    remove(&mut md, 2);
    md.commit().unwrap();
    remove(&mut md, 3);
    assert_eq!(told, [vec![], vec![true], vec![true], vec![false]]);
}

#[test]
fn it_shows_the_pool_as_it_was() {
    let mut md = pool(1024, 2000);
    let mut model = Model::new(2000);
    md.create_thin(id(1)).unwrap();
    model.create(1);
    let thin = md.open_thin(id(1)).unwrap();
    for virtual_block in 0..600 {
        let block = provision(&mut md, &thin, virtual_block * 3).unwrap();
        model.insert(1, virtual_block * 3, block);
    }
    md.create_snap(id(2), id(1)).unwrap();
    model.snap(2, 1);
    md.set_transaction_id(0, 5).unwrap();
    model.pool.transaction_id = 5;

    // What is not committed yet is committed first, and so part of it.
    let mut flushed = false;
    md.reserve_metadata_snap(|| {
        flushed = true;
        Ok(())
    })
    .unwrap();
    assert!(flushed);
    model.held = model.pool.held();
    model.check(&mut md);
    md.commit().unwrap();
    model.check_committed(&mut md);
    check_with_tools(&md, &model);

    for virtual_block in 100..400 {
        let block = provision(&mut md, &thin, virtual_block).unwrap();
        model.insert(1, virtual_block, block);
    }
    md.remove_range(&thin, 500, 1200, &mut |_| ()).unwrap();
    model.remove(1, 500, 1200);
    md.delete_thin(id(2), &mut |_| ()).unwrap();
    model.pool.devices.remove(&2);
    md.create_thin(id(3)).unwrap();
    model.create(3);
    model.check(&mut md);
    md.commit().unwrap();
    model.check_committed(&mut md);
    check_with_tools(&md, &model);
    md.close_thin(&thin);

    // It survives a crash, and is released after it.
    let mut md = reopen(&md);
    model.check_committed(&mut md);
    md.release_metadata_snap(&mut |_| ()).unwrap();
    model.held = None;
    model.check(&mut md);
    md.commit().unwrap();
    model.check_committed(&mut md);
    check_with_tools(&md, &model);
}

#[test]
fn its_superblock_has_no_space_maps() {
    let mut md = pool(256, 10);
    md.create_thin(id(1)).unwrap();
    md.reserve_metadata_snap(no_flush).unwrap();
    md.commit().unwrap();

    let live = View::new(md.bm()).unwrap();
    let snap = live.metadata_snap().unwrap().expect("it is held");
    let (live, snap) = (*live.superblock(), *snap.superblock());
    assert_eq!(snap.blocknr.get(), live.held_root.get());
    assert_eq!(snap.held_root.get(), 0);
    assert_eq!(snap.data_space_map_root, [0; 128]);
    assert_eq!(snap.metadata_space_map_root, [0; 128]);
    assert_eq!(snap.data_mapping_root, live.data_mapping_root);
    assert_eq!(snap.device_details_root, live.device_details_root);
    assert_eq!(snap.data_block_size, live.data_block_size);
    for root in [live.data_mapping_root.get(), live.device_details_root.get()] {
        assert_eq!(md.tm.ref_count(&md.bm, root), Ok(2));
    }
    assert_eq!(md.tm.ref_count(&md.bm, live.held_root.get()), Ok(1));
    assert_eq!(md.tm.ref_count(&md.bm, 0), Ok(1));
}

#[test]
fn an_abort_undoes_reserve_and_release() {
    let mut md = pool(256, 10);
    md.create_thin(id(1)).unwrap();
    md.reserve_metadata_snap(no_flush).unwrap();
    md.abort().unwrap();
    assert_eq!(md.metadata_snap(), Ok(None));

    md.reserve_metadata_snap(no_flush).unwrap();
    md.commit().unwrap();
    md.release_metadata_snap(&mut |_| ()).unwrap();
    md.abort().unwrap();
    let mut model = Model::new(10);
    model.create(1);
    model.held = model.pool.held();
    model.check_committed(&mut md);
    tools::check(&md.bm().image()).expect("thin_check");
}
