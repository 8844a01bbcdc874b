// SPDX-License-Identifier: GPL-2.0

//! Images that others have made.

use persistent_data::{
    file::FileBm,
    memory::MemoryBm, //
};

use super::{
    check_with_tools,
    judge::read,
    model::{
        id,
        Model, //
    },
    no_flush,
    tools::{
        self,
        Image, //
    },
    workload,
    DATA_BLOCK_SIZE,
    REOPEN, //
};
use crate::{
    Metadata,
    View, //
};

/// A pool of some devices, some of which share blocks.
fn sample() -> Model {
    let mut model = Model::new(5000);
    model.pool.transaction_id = 17;
    let mut next = 0;
    for dev in [1, 2, 9, 0xff_ffff] {
        model.create(dev);
        for n in 0..dev.min(1000) {
            model.insert(dev, n * n % 100_003, next);
            next += 1 + n % 3;
        }
    }
    model.snap(4, 9);
    model.snap(5, 4);
    model.insert(5, 3, next);
    model
}

#[test]
fn what_thin_restore_made_opens_and_goes_on() {
    let mut model = sample();
    let image = tools::restore(&model.pool, DATA_BLOCK_SIZE, 1024);
    let mut md = Metadata::open(MemoryBm::from_image(&image), REOPEN).expect("it opens");
    model.check_committed(&mut md);

    workload::insert(&mut md, &mut model, 9, 100..900).expect("insert");
    workload::remove(&mut md, &mut model, 0xff_ffff, 40, 40_000).expect("remove");
    md.create_snap(id(6), id(1)).expect("snapshot");
    model.snap(6, 1);
    md.delete_thin(id(4), &mut |_| ()).expect("delete");
    model.pool.devices.remove(&4);
    md.close(no_flush).expect("close");
    model.check_committed(&mut md);
    check_with_tools(&md, &model);
}

/// `thin_restore` does not count what lies behind the last block, so a full bitmap has no free entries then.
#[test]
fn a_full_pool_that_was_restored_can_grow() {
    let mut model = Model::new(100);
    model.create(1);
    (0..100).for_each(|block| model.insert(1, block, block));
    let image = tools::restore(&model.pool, DATA_BLOCK_SIZE, 1024);
    let mut md = Metadata::open(MemoryBm::from_image(&image), REOPEN).expect("it opens");
    assert_eq!(md.free_data_blocks(), Ok(0));
    md.resize_data(200).expect("growth");
    md.commit().expect("commit");
    assert_eq!(md.free_data_blocks(), Ok(100));
    let mut found = 0;
    let allocated =
        md.alloc_data_blocks(100, &mut |_| true, &mut |run| found += run.end - run.start);
    assert_eq!((allocated, found), (Ok(100), 100));
}

#[test]
fn a_file_is_as_good_as_memory() {
    let mut model = sample();
    let image = Image::new(&tools::restore(&model.pool, DATA_BLOCK_SIZE, 1024));
    let bm = FileBm::open(image.path()).expect("the file opens");
    let mut md = Metadata::open(bm, REOPEN).expect("it opens");
    model.check_committed(&mut md);
    md.create_thin(id(3)).expect("create");
    model.create(3);
    md.close(no_flush).expect("close");
    drop(md);

    let bm = FileBm::open_read_only(image.path()).expect("the file opens");
    let view = View::new(&bm).expect("a superblock");
    assert_eq!(read(&view), model.pool);
    let content = std::fs::read(image.path()).expect("the file");
    tools::check(&content).expect("thin_check");
    assert_eq!(tools::dump(&content, None), model.pool);
}

#[test]
fn turns_of_both_keep_everything() {
    let mut model = sample();
    for turn in 0..4 {
        let image = tools::restore(&model.pool, DATA_BLOCK_SIZE, 1024);
        let mut md = Metadata::open(MemoryBm::from_image(&image), REOPEN).expect("it opens");
        workload::insert(&mut md, &mut model, 2, turn * 50..turn * 50 + 70).expect("insert");
        md.create_snap(id(20 + turn), id(9)).expect("snapshot");
        model.snap(20 + turn, 9);
        md.commit().expect("commit");
        assert_eq!(tools::dump(&md.bm().image(), None), model.pool);
    }
}
