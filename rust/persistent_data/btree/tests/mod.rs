// SPDX-License-Identifier: GPL-2.0

//! Tests against models, with exact reference counts.

mod corrupt;
mod counting;
mod levels;
mod model;
mod orders;

use proptest::test_runner::Config;

pub(crate) use counting::{
    Counted,
    CountingTx,
    Owned,
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
