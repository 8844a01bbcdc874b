// SPDX-License-Identifier: GPL-2.0

//! Tests against models, with exact reference counts.

mod corrupt;
mod counting;
mod diff;
mod levels;
mod model;
mod orders;

use proptest::test_runner::Config;

use crate::{
    block::BlockNr,
    memory::MemoryBm, //
};

pub(crate) use counting::{
    Counted,
    CountingTx,
    Fat,
    Owned,
    References,
    TestValue, //
};

/// So many cases, or what the environment variable `PROPTEST_CASES` says; none that failed is kept in a file.
pub(crate) fn cases(n: u32) -> Config {
    let mut config = Config::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = n;
    }
    config.failure_persistence = None;
    config
}

/// What the trees with these roots refer to.
pub(crate) fn references<V: TestValue>(
    bm: &MemoryBm,
    roots: impl Iterator<Item = BlockNr>,
) -> References {
    let mut references = References::default();
    for root in roots {
        references.add::<V>(bm, root, 1);
    }
    references
}
