// SPDX-License-Identifier: GPL-2.0

//! Writes mutated images to files, for a module in a virtual machine.
//!
//! `hostile_images SEED NUMBER FILE` writes one image and prints what it is, as a line of JSON. Each twentieth one is
//! not edited.

use std::process::ExitCode;

use dm_thin_fuzz::{
    base::{
        self,
        DATA_BLOCK_SIZE, //
    },
    edit,
    image::Image,
    mutator::{
        self,
        Random, //
    },
};

/// One in so many images is as it should be.
const UNEDITED: u64 = 20;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [seed, number, file] = &arguments[..] else {
        eprintln!("usage: hostile_images SEED NUMBER FILE");
        return ExitCode::FAILURE;
    };
    let (Ok(seed), Ok(number)) = (seed.parse::<u64>(), number.parse::<u64>()) else {
        eprintln!("hostile_images: seed and number are numbers");
        return ExitCode::FAILURE;
    };

    let random = &mut Random::new(seed << 32 | number);
    let bases = base::all();
    let base = &bases[random.below(bases.len())];
    let mut image = Image::new(base);
    let count = match number % UNEDITED {
        0 => 0,
        _ => 1 + random.below(3),
    };
    let edits: Vec<_> = (0..count).map(|_| mutator::edit(random)).collect();
    edit::apply(&mut image, &edits);
    if let Err(e) = std::fs::write(file, image.to_bytes()) {
        eprintln!("hostile_images: {file}: {e}");
        return ExitCode::FAILURE;
    }
    let edits: Vec<_> = edits
        .iter()
        .map(|record| format!("\"{}\"", edit::describe(&image, record)))
        .collect();
    println!(
        "{{\"image\": {number}, \"base\": \"{}\", \"data_blocks\": {}, \"block_sectors\": {DATA_BLOCK_SIZE}, \"edits\": [{}]}}",
        base.name,
        base.nr_data,
        edits.join(", ")
    );
    ExitCode::SUCCESS
}
