// SPDX-License-Identifier: GPL-2.0

//! For libFuzzer: pools on edited images.

#![no_main]

use dm_thin_fuzz::{
    mutator,
    program, //
};
use libfuzzer_sys::{
    fuzz_mutator,
    fuzz_target, //
};

fuzz_target!(|bytes: &[u8]| {
    program::play(bytes);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    match seed % 8 {
        0 => libfuzzer_sys::fuzzer_mutate(data, size, max_size),
        _ => mutator::mutate(data, size, max_size, seed / 8),
    }
});
