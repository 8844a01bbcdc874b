// SPDX-License-Identifier: GPL-2.0

//! Copies of the module's sources in each of which one thing is wrong; see `build.rs`.

include!(concat!(env!("OUT_DIR"), "/mutants.rs"));
