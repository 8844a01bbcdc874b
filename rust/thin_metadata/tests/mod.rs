// SPDX-License-Identifier: GPL-2.0

//! Tests in user space, against a model and against the installed thin-provisioning-tools.

mod basics;
mod batches;
mod deep;
mod freed;
mod held;
mod held_root;
mod images;
mod judge;
mod model;
mod only_child;
mod open;
mod random;
mod steps;
mod tools;
mod workload;

use persistent_data::memory::MemoryBm;

use self::model::Model;
use crate::{
    Error,
    Metadata,
    OpenParams,
    Result,
    ThinHandle, //
};

const DATA_BLOCK_SIZE: u32 = 128;

const PARAMS: OpenParams = OpenParams {
    data_block_size: DATA_BLOCK_SIZE,
    format: true,
    read_only: false,
};

const REOPEN: OpenParams = OpenParams {
    format: false,
    ..PARAMS
};

/// There is no data device in these tests.
fn no_flush() -> Result {
    Ok(())
}

/// A new pool, committed.
fn pool(nr_metadata: u64, nr_data: u64) -> Metadata<MemoryBm> {
    let mut md = Metadata::open(MemoryBm::new(nr_metadata), PARAMS).expect("a new pool");
    md.resize_data(nr_data).expect("resize");
    md.commit().expect("commit");
    md
}

/// Takes a data block and maps it.
fn provision(md: &mut Metadata<MemoryBm>, thin: &ThinHandle, virtual_block: u64) -> Result<u64> {
    let block = md.alloc_data_block(&mut |_| true)?;
    md.insert_block(thin, virtual_block, block, &mut |_| ())?;
    Ok(block)
}

/// Opens what is stable of `md`, as after a loss of power.
fn reopen(md: &Metadata<MemoryBm>) -> Metadata<MemoryBm> {
    Metadata::open(md.bm().crash(), REOPEN).expect("the pool opens again")
}

/// Has the tools judge the last commit of `md`, which is that of `model`.
fn check_with_tools(md: &Metadata<MemoryBm>, model: &Model) {
    let image = md.bm().image();
    tools::check(&image).expect("thin_check");
    assert_eq!(tools::dump(&image, None), model.pool);
    let snap = md.metadata_snap().expect("a healthy pool");
    assert_eq!(
        snap.map(|block| tools::dump(&image, Some(block))),
        model.held
    );
}

/// The errno of an error, as the kernel would see it.
fn errno<T: core::fmt::Debug>(result: Result<T>) -> i32 {
    match result {
        Ok(x) => panic!("an error was due, not {x:?}"),
        Err(e) => e.errno(),
    }
}

#[test]
fn errors_fit_a_line_of_a_log() {
    let e = Error::Shrink { from: 7, to: 3 };
    assert_eq!(e.to_string(), "cannot shrink from 7 to 3 blocks");
    let e: Error = persistent_data::Error::OutOfBounds(9).into();
    assert_eq!(e.to_string(), "block 9 is out of bounds");
}
