// SPDX-License-Identifier: GPL-2.0

//! For libFuzzer: raw bytes as blocks.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| dm_thin_fuzz::format::read(bytes));
