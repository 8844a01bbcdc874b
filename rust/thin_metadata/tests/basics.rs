// SPDX-License-Identifier: GPL-2.0

//! One property each, told by the C implementation.

use persistent_data::block_manager::BlockManager;

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
    reopen, //
};
use crate::{
    format::MAX_TIME,
    DeviceId,
    Error,
    MappedRange,
    Mapping, //
};

const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const ENODATA: i32 = 61;

#[test]
fn a_new_pool_is_empty() {
    let mut md = pool(256, 100);
    let model = Model::new(100);
    model.check_committed(&mut md);
    assert_eq!(md.nr_metadata_blocks(), Ok(256));
    let free = md.free_metadata_blocks().unwrap();
    assert!((200..256 - 25).contains(&free), "{free}");
    check_with_tools(&md, &model);
    model.check_committed(&mut reopen(&md));
}

#[test]
fn devices_are_created_and_deleted() {
    let mut md = pool(256, 100);
    let mut model = Model::new(100);

    assert_eq!(md.create_thin(id(3)), Ok(()));
    model.create(3);
    model.check(&mut md);
    assert_eq!(errno(md.create_thin(id(3))), EEXIST);
    md.commit().unwrap();
    assert_eq!(errno(md.create_thin(id(3))), EEXIST);
    assert_eq!(errno(md.create_snap(id(3), id(3))), EEXIST);
    assert_eq!(errno(md.create_snap(id(4), id(5))), ENODATA);
    assert_eq!(errno(md.delete_thin(id(4), &mut |_| ())), ENODATA);
    assert_eq!(errno(md.open_thin(id(4))), ENODATA);
    assert!(!md.needs_abort() && !md.needs_commit());
    model.check_committed(&mut md);

    let max = DeviceId::try_from(0xff_ffff).unwrap();
    assert_eq!(md.create_thin(max), Ok(()));
    assert_eq!(md.delete_thin(max, &mut |_| ()), Ok(()));
    assert_eq!(md.delete_thin(id(3), &mut |_| ()), Ok(()));
    assert_eq!(errno(md.delete_thin(id(3), &mut |_| ())), ENODATA);
    md.commit().unwrap();
    check_with_tools(&md, &Model::new(100));
}

#[test]
fn a_device_opens_more_than_once_and_cannot_be_deleted_then() {
    let mut md = pool(256, 100);
    md.create_thin(id(0)).unwrap();
    let first = md.open_thin(id(0)).unwrap();
    let second = md.open_thin(id(0)).unwrap();
    assert_eq!(errno(md.delete_thin(id(0), &mut |_| ())), EBUSY);
    md.close_thin(&first);
    assert_eq!(errno(md.delete_thin(id(0), &mut |_| ())), EBUSY);
    assert_eq!(md.close(no_flush), Err(Error::DevicesOpen(1)));
    md.close_thin(&second);
    assert_eq!(md.delete_thin(id(0), &mut |_| ()), Ok(()));
    assert_eq!(md.close(no_flush), Ok(()));
}

#[test]
fn mappings_are_inserted_overwritten_and_removed() {
    let mut md = pool(256, 100);
    let mut model = Model::new(100);
    md.create_thin(id(1)).unwrap();
    model.create(1);
    let thin = md.open_thin(id(1)).unwrap();
    assert_eq!(md.highest_mapped(&thin), Ok(None));

    for virtual_block in [0, 1, 2, 7, u64::MAX - 1, 1 << 40] {
        let block = provision(&mut md, &thin, virtual_block).unwrap();
        model.insert(1, virtual_block, block);
    }
    assert!(md.thin_changed_this_transaction(&thin));
    assert!(md.changed_this_transaction());
    model.check(&mut md);
    md.commit().unwrap();
    assert!(!md.thin_changed_this_transaction(&thin));
    model.check_committed(&mut md);
    check_with_tools(&md, &model);

    let block = provision(&mut md, &thin, 1).unwrap();
    model.insert(1, 1, block);
    model.check(&mut md);
    assert_eq!(md.remove_range(&thin, 2, 8, &mut |_| ()), Ok(()));
    model.remove(1, 2, 8);
    model.check(&mut md);
    md.commit().unwrap();

    // No range.
    assert_eq!(md.remove_range(&thin, 7, 1, &mut |_| ()), Ok(()));
    assert!(!md.needs_commit());
    // Nothing is mapped there: no change of the device.
    assert_eq!(md.remove_range(&thin, 100, 200, &mut |_| ()), Ok(()));
    assert!(!md.changed_this_transaction());
    model.check(&mut md);
    md.commit().unwrap();
    model.check_committed(&mut md);
    check_with_tools(&md, &model);
    md.close_thin(&thin);
}

#[test]
fn a_range_ends_where_data_blocks_or_sharing_do() {
    let mut md = pool(256, 100);
    md.create_thin(id(1)).unwrap();
    let thin = md.open_thin(id(1)).unwrap();
    for (virtual_block, block) in [(5, 0), (6, 1), (7, 2), (8, 9), (11, 10)] {
        md.insert_block(&thin, virtual_block, block, &mut |_| ())
            .unwrap();
    }
    let range = |begin, end, block, shared| {
        Ok(Some(MappedRange {
            begin,
            end,
            block,
            shared,
        }))
    };
    assert_eq!(md.find_mapped_range(&thin, 0, 100), range(5, 8, 0, false));
    assert_eq!(md.find_mapped_range(&thin, 6, 7), range(6, 7, 1, false));
    assert_eq!(md.find_mapped_range(&thin, 8, 100), range(8, 9, 9, false));
    assert_eq!(
        md.find_mapped_range(&thin, 9, 100),
        range(11, 12, 10, false)
    );
    assert_eq!(md.find_mapped_range(&thin, 12, 100), Ok(None));
    assert_eq!(md.find_mapped_range(&thin, 9, 11), Ok(None));
    assert_eq!(md.find_mapped_range(&thin, 9, 3), Ok(None));

    md.create_snap(id(2), id(1)).unwrap();
    md.insert_block(&thin, 6, 1, &mut |_| ()).unwrap();
    assert_eq!(md.find_mapped_range(&thin, 0, 100), range(5, 6, 0, true));
    assert_eq!(md.find_mapped_range(&thin, 6, 100), range(6, 7, 1, false));
    md.close_thin(&thin);
}

#[test]
fn time_tells_what_is_shared() {
    let mut md = pool(256, 100);
    let mut model = Model::new(100);
    md.create_thin(id(1)).unwrap();
    model.create(1);
    let origin = md.open_thin(id(1)).unwrap();
    let block = provision(&mut md, &origin, 0).unwrap();
    model.insert(1, 0, block);
    assert_eq!(
        md.find_block(&origin, 0, true),
        Ok(Some(Mapping {
            block,
            shared: false
        }))
    );

    md.create_snap(id(2), id(1)).unwrap();
    model.snap(2, 1);
    assert_eq!(md.time(), 1);
    model.check(&mut md);
    let snap = md.open_thin(id(2)).unwrap();
    for thin in [&origin, &snap] {
        assert_eq!(
            md.find_block(thin, 0, true),
            Ok(Some(Mapping {
                block,
                shared: true
            }))
        );
    }

    // Breaking of sharing: the origin gets a block of its own, mapped after the snapshot.
    let copy = provision(&mut md, &origin, 0).unwrap();
    model.insert(1, 0, copy);
    assert_ne!(copy, block);
    assert_eq!(
        md.find_block(&origin, 0, true),
        Ok(Some(Mapping {
            block: copy,
            shared: false
        }))
    );
    // The snapshot's block still looks shared: it is older than the snapshot. It is not.
    assert_eq!(
        md.find_block(&snap, 0, true),
        Ok(Some(Mapping {
            block,
            shared: true
        }))
    );
    assert_eq!(md.block_is_shared(block), Ok(false));
    model.check(&mut md);
    md.close_thin(&origin);
    md.close_thin(&snap);
    md.commit().unwrap();
    check_with_tools(&md, &model);
}

#[test]
fn snapshots_of_snapshots_share_until_written_to() {
    let mut md = pool(1024, 1000);
    let mut model = Model::new(1000);
    md.create_thin(id(0)).unwrap();
    model.create(0);
    let thin = md.open_thin(id(0)).unwrap();
    for virtual_block in 0..300 {
        let block = provision(&mut md, &thin, virtual_block).unwrap();
        model.insert(0, virtual_block, block);
    }
    md.close_thin(&thin);
    for n in 1..15 {
        md.create_snap(id(n), id(n - 1)).unwrap();
        model.snap(n, n - 1);
        let thin = md.open_thin(id(n)).unwrap();
        let block = provision(&mut md, &thin, n * 10).unwrap();
        model.insert(n, n * 10, block);
        md.remove_range(&thin, n * 20, n * 20 + 3, &mut |_| ())
            .unwrap();
        model.remove(n, n * 20, n * 20 + 3);
        md.close_thin(&thin);
        if n % 4 == 0 {
            md.commit().unwrap();
        }
    }
    md.commit().unwrap();
    model.check_committed(&mut md);
    check_with_tools(&md, &model);

    for n in [7, 0, 14, 3, 1] {
        md.delete_thin(id(n), &mut |_| ()).unwrap();
        model.pool.devices.remove(&n);
    }
    md.commit().unwrap();
    model.check_committed(&mut md);
    check_with_tools(&md, &model);
}

#[test]
fn blocks_that_were_not_usable_come_back_with_a_commit() {
    let mut md = pool(64, 3);
    let mut asked = Vec::new();
    let mut refuse = |block| {
        asked.push(block);
        false
    };
    assert_eq!(md.alloc_data_block(&mut refuse), Err(Error::NoDataSpace));
    assert_eq!(md.alloc_data_block(&mut |_| true), Err(Error::NoDataSpace));
    assert_eq!(asked, [0, 1, 2]);

    // There is nothing to commit.
    assert!(!md.needs_commit());
    md.commit().unwrap();
    assert_eq!(md.alloc_data_block(&mut |block| block == 1), Ok(1));
    assert_eq!(md.alloc_data_block(&mut |_| false), Err(Error::NoDataSpace));
    md.commit().unwrap();
    assert_eq!(md.alloc_data_block(&mut |_| true), Ok(2));
    assert_eq!(md.alloc_data_block(&mut |_| true), Ok(0));
}

#[test]
fn a_freed_block_is_not_taken_before_the_next_commit() {
    let mut md = pool(256, 4);
    md.create_thin(id(1)).unwrap();
    let thin = md.open_thin(id(1)).unwrap();
    for virtual_block in 0..4 {
        provision(&mut md, &thin, virtual_block).unwrap();
    }
    md.commit().unwrap();
    assert_eq!(md.free_data_blocks(), Ok(0));

    md.remove_range(&thin, 1, 3, &mut |_| ()).unwrap();
    assert_eq!(md.free_data_blocks(), Ok(2));
    assert_eq!(md.alloc_data_block(&mut |_| true), Err(Error::NoDataSpace));
    assert_eq!(errno(md.alloc_data_block(&mut |_| true)), ENOSPC);
    assert!(!md.needs_abort());
    md.commit().unwrap();
    assert_eq!(md.alloc_data_block(&mut |_| true), Ok(1));
    assert_eq!(md.alloc_data_block(&mut |_| true), Ok(2));
    assert_eq!(md.alloc_data_block(&mut |_| true), Err(Error::NoDataSpace));
    md.dec_data_range(1, 3).unwrap();
    md.close_thin(&thin);
}

#[test]
fn references_of_data_blocks_are_counted() {
    let mut md = pool(256, 10);
    assert_eq!(md.block_is_shared(3), Ok(false));
    md.inc_data_range(2, 6).unwrap();
    md.inc_data_range(3, 4).unwrap();
    assert_eq!(md.block_is_shared(2), Ok(false));
    assert_eq!(md.block_is_shared(3), Ok(true));
    assert_eq!(md.free_data_blocks(), Ok(6));
    md.dec_data_range(3, 4).unwrap();
    md.dec_data_range(2, 6).unwrap();
    assert_eq!(md.free_data_blocks(), Ok(10));

    for (begin, end) in [(10, 11), (3, 2), (0, u64::MAX)] {
        assert_eq!(
            md.inc_data_range(begin, end),
            Err(Error::BadBlocks { begin, end })
        );
        assert_eq!(
            md.dec_data_range(begin, end),
            Err(Error::BadBlocks { begin, end })
        );
    }
    assert!(!md.needs_abort());
    md.commit().unwrap();
    check_with_tools(&md, &Model::new(10));

    // A count below zero is no argument but a fault in the metadata.
    assert!(md.dec_data_range(0, 1).is_err());
    assert!(md.needs_abort());
    assert_eq!(md.abort(), Ok(()));
    Model::new(10).check_committed(&mut md);
}

#[test]
fn data_blocks_beyond_the_device_cannot_be_mapped() {
    let mut md = pool(256, 10);
    md.create_thin(id(1)).unwrap();
    let thin = md.open_thin(id(1)).unwrap();
    for block in [10, 1 << 40, u64::MAX] {
        assert_eq!(errno(md.insert_block(&thin, 0, block, &mut |_| ())), EINVAL);
    }
    assert!(!md.needs_abort());
    assert_eq!(md.find_block(&thin, 0, true), Ok(None));
    md.close_thin(&thin);
}

#[test]
fn the_transaction_id_is_compared_and_set() {
    let mut md = pool(256, 10);
    assert_eq!(md.set_transaction_id(0, 7), Ok(()));
    assert_eq!(errno(md.set_transaction_id(0, 8)), EINVAL);
    assert_eq!(md.transaction_id(), Ok(7));
    md.commit().unwrap();
    assert_eq!(reopen(&md).transaction_id(), Ok(7));

    md.set_transaction_id(7, u64::MAX).unwrap();
    md.abort().unwrap();
    assert_eq!(md.transaction_id(), Ok(7));
}

#[test]
fn without_changes_nothing_is_written() {
    let mut md = pool(256, 10);
    md.create_thin(id(1)).unwrap();
    md.commit().unwrap();

    let before = md.bm().counts();
    let flushed = || panic!("the data device needs no flush");
    assert_eq!(md.prepare_commit(), Ok(false));
    md.commit().unwrap();
    md.commit_with(flushed).unwrap();
    let thin = md.open_thin(id(1)).unwrap();
    md.find_block(&thin, 0, true).unwrap();
    md.close_thin(&thin);
    md.close(flushed).unwrap();
    let after = md.bm().counts();
    assert_eq!(before.writes, after.writes);
    assert_eq!(before.flushes, after.flushes);
}

#[test]
fn the_data_device_is_flushed_before_the_superblock_is_written() {
    let mut md = pool(256, 10);
    md.create_thin(id(1)).unwrap();
    let before = reopen(&md);
    drop(before);

    let mut called = false;
    md.commit_with(|| {
        called = true;
        Ok(())
    })
    .unwrap();
    assert!(called);

    md.create_thin(id(2)).unwrap();
    assert_eq!(
        md.commit_with(|| Err(Error::DataFlush(5))),
        Err(Error::DataFlush(5))
    );
    assert_eq!(reopen(&md).open_thin(id(2)), Err(Error::NoDevice(id(2))));
    // Tried again, it succeeds.
    md.commit_with(no_flush).unwrap();
    let mut md = reopen(&md);
    let thin = md.open_thin(id(2)).unwrap();
    md.close_thin(&thin);
}

#[test]
fn a_prepared_commit_lets_look_ups_pass_and_refuses_changes() {
    let mut md = pool(256, 10);
    md.create_thin(id(1)).unwrap();
    let thin = md.open_thin(id(1)).unwrap();
    let block = provision(&mut md, &thin, 3).unwrap();

    assert_eq!(md.prepare_commit(), Ok(true));
    assert_eq!(md.prepare_commit(), Ok(true));
    let found = Ok(Some(Mapping {
        block,
        shared: false,
    }));
    assert_eq!(md.find_block(&thin, 3, true), found);
    assert!(md.thin_changed_this_transaction(&thin));
    assert_eq!(md.create_thin(id(2)), Err(Error::Prepared));
    assert_eq!(
        md.insert_block(&thin, 4, 4, &mut |_| ()),
        Err(Error::Prepared)
    );
    assert_eq!(
        md.remove_range(&thin, 0, 9, &mut |_| ()),
        Err(Error::Prepared)
    );
    assert_eq!(md.alloc_data_block(&mut |_| true), Err(Error::Prepared));
    assert_eq!(md.commit(), Ok(()));
    assert_eq!(md.find_block(&thin, 3, true), found);
    assert!(!md.thin_changed_this_transaction(&thin));

    md.remove_range(&thin, 0, 9, &mut |_| ()).unwrap();
    assert_eq!(md.prepare_commit(), Ok(true));
    assert_eq!(md.abort(), Ok(()));
    assert_eq!(md.find_block(&thin, 3, true), found);
    assert!(md.thin_aborted_changes(&thin));
    md.close_thin(&thin);
}

#[test]
fn an_abort_goes_back_to_the_last_commit() {
    let mut md = pool(256, 100);
    let mut model = Model::new(100);
    for n in 0..3 {
        md.create_thin(id(n)).unwrap();
        model.create(n);
    }
    let changed = md.open_thin(id(0)).unwrap();
    let idle = md.open_thin(id(1)).unwrap();
    for virtual_block in 0..5 {
        let block = provision(&mut md, &changed, virtual_block).unwrap();
        model.insert(0, virtual_block, block);
    }
    md.commit().unwrap();

    provision(&mut md, &changed, 9).unwrap();
    md.remove_range(&changed, 0, 2, &mut |_| ()).unwrap();
    md.create_thin(id(7)).unwrap();
    let gone = md.open_thin(id(7)).unwrap();
    provision(&mut md, &gone, 1).unwrap();
    md.delete_thin(id(2), &mut |_| ()).unwrap();
    md.resize_data(200).unwrap();
    md.abort().unwrap();

    model.check_committed(&mut md);
    assert!(md.thin_aborted_changes(&changed));
    assert!(!md.thin_changed_this_transaction(&changed));
    assert!(!md.thin_aborted_changes(&idle));
    assert!(md.thin_aborted_changes(&gone));
    let no_device = Error::NoDevice(id(7));
    assert_eq!(md.find_block(&gone, 1, true), Err(no_device));
    assert_eq!(md.mapped_count(&gone), Err(no_device));
    assert_eq!(md.insert_block(&gone, 1, 50, &mut |_| ()), Err(no_device));
    assert_eq!(md.remove_range(&gone, 0, 5, &mut |_| ()), Err(no_device));
    assert_eq!(md.highest_mapped(&gone), Err(no_device));
    assert_eq!(md.open_thin(id(7)), Err(no_device));
    assert_eq!(
        md.create_thin(id(7)),
        Err(Error::DeviceExists(id(7))),
        "as long as it is open"
    );
    md.close_thin(&gone);

    // Another abort changes nothing, and what was aborted stays so.
    md.abort().unwrap();
    assert!(md.thin_aborted_changes(&changed));
    md.close_thin(&changed);
    md.close_thin(&idle);

    md.create_thin(id(7)).unwrap();
    model.create(7);
    md.commit().unwrap();
    model.check_committed(&mut md);
    check_with_tools(&md, &model);
}

#[test]
fn an_abort_that_fails_leaves_nothing_to_do() {
    let mut md = pool(256, 10);
    md.create_thin(id(1)).unwrap();
    let thin = md.open_thin(id(1)).unwrap();
    md.bm().tamper(0, |data| data[100] ^= 1);
    assert_eq!(errno(md.abort()), 84);
    assert!(md.is_failed());

    let failed = Error::Failed;
    assert_eq!(md.abort(), Err(failed));
    assert_eq!(md.commit(), Err(failed));
    assert_eq!(md.create_thin(id(2)), Err(failed));
    assert_eq!(md.find_block(&thin, 0, true), Err(failed));
    assert_eq!(md.free_data_blocks(), Err(failed));
    assert_eq!(md.transaction_id(), Err(failed));
    assert_eq!(md.set_needs_check(), Err(failed));
    assert_eq!(md.metadata_snap(), Err(failed));
    assert_eq!(failed.errno(), EINVAL);
    md.close_thin(&thin);
    assert_eq!(md.close(no_flush), Ok(()));
}

#[test]
fn devices_grow_and_do_not_shrink() {
    let mut md = pool(64, 10);
    assert_eq!(errno(md.resize_data(9)), EINVAL);
    assert_eq!(errno(md.resize_metadata(63)), EINVAL);
    assert_eq!(md.resize_data(10), Ok(()));
    assert_eq!(md.resize_metadata(64), Ok(()));
    assert_eq!(
        md.resize_data((1 << 40) + 1),
        Err(Error::TooManyDataBlocks((1 << 40) + 1))
    );
    assert!(!md.needs_commit());

    md.resize_data(100_000).unwrap();
    md.bm.grow(64);
    md.resize_metadata(128).unwrap();
    md.commit().unwrap();
    assert_eq!(md.nr_data_blocks(), Ok(100_000));
    assert_eq!(md.free_data_blocks(), Ok(100_000));
    assert_eq!(md.nr_metadata_blocks(), Ok(128));
    let free = md.free_metadata_blocks().unwrap();
    assert!((80..=128 - 12).contains(&free), "{free}");

    md.create_thin(id(1)).unwrap();
    let thin = md.open_thin(id(1)).unwrap();
    md.insert_block(&thin, 0, 10, &mut |_| ()).unwrap();
    md.inc_data_range(10, 11).unwrap();
    assert_eq!(
        md.find_block(&thin, 0, true).map(|m| m.map(|m| m.block)),
        Ok(Some(10))
    );
    md.commit().unwrap();
    tools_accept(&md);
    md.close_thin(&thin);
}

fn tools_accept(md: &crate::Metadata<persistent_data::memory::MemoryBm>) {
    super::tools::check(&md.bm().image()).expect("thin_check");
}

#[test]
fn read_only_metadata_refuse_changes_and_lose_nothing() {
    let mut md = pool(256, 10);
    md.create_thin(id(1)).unwrap();
    md.set_read_only(true);
    assert!(md.bm().is_read_only());
    assert_eq!(md.create_thin(id(2)), Err(Error::ReadOnly));
    assert_eq!(md.commit(), Err(Error::ReadOnly));
    assert!(!md.needs_abort());
    // A commit is not possible, and closing does not insist.
    assert_eq!(md.close(no_flush), Ok(()));
    md.set_read_only(false);
    md.commit().unwrap();
    let mut model = Model::new(10);
    model.create(1);
    model.check_committed(&mut md);
}

#[test]
fn needs_check_is_written_at_once_and_stays() {
    let mut md = pool(256, 10);
    assert!(!md.needs_check());
    md.create_thin(id(1)).unwrap();
    md.set_needs_check().unwrap();
    assert!(md.needs_check());

    let mut after_crash = reopen(&md);
    assert!(after_crash.needs_check());
    Model::new(10).check_committed(&mut after_crash);

    md.abort().unwrap();
    assert!(md.needs_check());
    md.create_thin(id(2)).unwrap();
    md.commit().unwrap();
    assert!(reopen(&md).needs_check());
}

#[test]
fn the_threshold_fires_once_on_its_way_down() {
    let mut md = pool(256, 5000);
    let free = md.tm.nr_free();
    md.set_threshold(free - 10).unwrap();
    assert!(!md.threshold_crossed());
    md.create_thin(id(1)).unwrap();
    let thin = md.open_thin(id(1)).unwrap();
    let mut fired = 0;
    for n in 0..3000 {
        provision(&mut md, &thin, n * 7919 % 4096).unwrap();
        fired += u32::from(md.threshold_crossed());
    }
    assert!(md.tm.nr_free() < free - 10);
    assert_eq!(fired, 1);
    md.close_thin(&thin);
}

#[test]
fn look_ups_that_do_not_wait_say_so_and_are_prefetched() {
    let mut md = pool(256, 10);
    md.create_thin(id(1)).unwrap();
    let thin = md.open_thin(id(1)).unwrap();
    let block = provision(&mut md, &thin, 3).unwrap();
    md.commit().unwrap();
    md.bm().forget_all();

    let found = Ok(Some(Mapping {
        block,
        shared: false,
    }));
    assert_eq!(md.find_block(&thin, 3, false), Err(Error::WouldBlock));
    // The root of the device's tree is known.
    md.issue_prefetches();
    assert_eq!(md.find_block(&thin, 3, false), found);
    // It is not after an abort: the top of the tree is read first.
    md.abort().unwrap();
    md.bm().forget_all();
    for _ in 0..2 {
        assert_eq!(md.find_block(&thin, 3, false), Err(Error::WouldBlock));
        md.issue_prefetches();
    }
    assert_eq!(md.find_block(&thin, 3, false), found);
    md.close_thin(&thin);
}

/// A device that was part of a snapshot which the pool's clock does not know of: new mappings are not shared, and the next
/// snapshot does not set its time back.
#[test]
fn time_catches_up_with_devices() {
    let mut md = pool(256, 10);
    for number in 1..=2 {
        md.create_thin(id(number)).unwrap();
    }
    let thin = md.open_thin(id(1)).unwrap();
    md.devices
        .change(md.devices.find(id(1)).unwrap())
        .unwrap()
        .snapshotted_time = 7;
    provision(&mut md, &thin, 0).unwrap();
    assert!(md.find_block(&thin, 0, true).unwrap().unwrap().shared);
    md.close_thin(&thin);
    md.commit().unwrap();
    assert_eq!(md.time(), 0);

    // The snapshot of another one does not know it yet.
    md.create_snap(id(3), id(2)).unwrap();
    assert_eq!(md.time(), 1);
    let thin = md.open_thin(id(1)).unwrap();
    assert_eq!(md.time(), 7);
    provision(&mut md, &thin, 1).unwrap();
    assert!(md.find_block(&thin, 0, true).unwrap().unwrap().shared);
    assert!(!md.find_block(&thin, 1, true).unwrap().unwrap().shared);
    // Nor does it go back when what was not committed is lost.
    md.abort().unwrap();
    assert_eq!(md.time(), 7);
    md.close_thin(&thin);
    md.commit().unwrap();
    md.create_snap(id(4), id(1)).unwrap();
    assert_eq!(md.time(), 8);
    md.abort().unwrap();

    md.time = 0;
    md.create_snap(id(4), id(1)).unwrap();
    assert_eq!(md.time(), 8);
    md.commit().unwrap();

    // There is no such time.
    let thin = md.open_thin(id(1)).unwrap();
    md.devices
        .change(md.devices.find(id(1)).unwrap())
        .unwrap()
        .snapshotted_time = MAX_TIME + 1;
    provision(&mut md, &thin, 2).unwrap();
    md.close_thin(&thin);
    md.commit().unwrap();
    assert_eq!(md.open_thin(id(1)), Err(Error::BadTime(id(1))));
    assert_eq!(md.create_snap(id(5), id(1)), Err(Error::BadTime(id(1))));
    assert_eq!(md.time(), 8);
}

#[test]
fn snapshots_end_with_time() {
    let mut md = pool(256, 10);
    md.create_thin(id(1)).unwrap();
    md.time = MAX_TIME - 1;
    md.create_snap(id(2), id(1)).unwrap();
    assert_eq!(md.create_snap(id(3), id(1)), Err(Error::EndOfTime));
    assert!(!md.needs_abort());
    let thin = md.open_thin(id(1)).unwrap();
    let block = provision(&mut md, &thin, 0).unwrap();
    assert_eq!(
        md.find_block(&thin, 0, true),
        Ok(Some(Mapping {
            block,
            shared: false
        }))
    );
    md.close_thin(&thin);
    md.commit().unwrap();
    tools_accept(&md);
    let md = reopen(&md);
    assert_eq!(md.time(), MAX_TIME);
}

#[test]
fn metadata_that_are_full_need_an_abort_and_go_on_then() {
    let mut md = pool(64, 20_000);
    md.create_thin(id(1)).unwrap();
    md.commit().unwrap();
    let thin = md.open_thin(id(1)).unwrap();
    let mut model = Model::new(20_000);
    model.create(1);

    let full = (0..20_000)
        .map(|n| provision(&mut md, &thin, n * 7919 % 20_000))
        .find_map(Result::err);
    assert_eq!(full, Some(Error::NoMetadataSpace));
    assert!(md.needs_abort());
    assert_eq!(md.find_block(&thin, 0, true), Err(Error::NeedsAbort));
    assert_eq!(md.commit(), Err(Error::NeedsAbort));
    assert_eq!(md.set_needs_check(), Err(Error::NeedsAbort));
    assert!(md.needs_check());

    md.abort().unwrap();
    model.check_committed(&mut md);
    let block = provision(&mut md, &thin, 3).unwrap();
    model.insert(1, 3, block);
    md.commit().unwrap();
    model.check_committed(&mut md);
    md.close_thin(&thin);
}

#[test]
fn half_of_the_reserve_may_be_used() {
    let mut md = pool(100, 20_000);
    md.create_thin(id(1)).unwrap();
    md.commit().unwrap();
    let thin = md.open_thin(id(1)).unwrap();

    // What is free within a transaction only gets less.
    let (mut seen_full, mut seen_refused) = (false, false);
    for n in 0..20_000 {
        let free = md.free_metadata_blocks().unwrap();
        let may = md.may_use_reserve().unwrap();
        assert!(may || free == 0);
        assert!(may || seen_full);
        assert!(!(may && seen_refused));
        seen_full |= free == 0;
        seen_refused |= !may;
        if provision(&mut md, &thin, n * 7919 % 20_000).is_err() {
            break;
        }
    }
    assert!(seen_full && seen_refused && md.needs_abort());

    md.abort().unwrap();
    assert_eq!(md.may_use_reserve(), Ok(true));
    md.close_thin(&thin);
}
