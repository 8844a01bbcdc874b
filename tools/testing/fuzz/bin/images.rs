// SPDX-License-Identifier: GPL-2.0

//! Writes mutated images to files, for a module in a virtual machine.
//!
//! `hostile_images SEED FOLDER NUMBER...` writes images to files that have their numbers as names, and prints what each is,
//! as a line of JSON. Each twentieth one is not edited.

use std::{
    error::Error,
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    process::ExitCode, //
};

use persistent_data::block::BLOCK_SIZE;

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
    let result = match &arguments[..] {
        [seed, folder, numbers @ ..] => write_all(seed, folder, numbers),
        _ => Err("usage: hostile_images SEED FOLDER NUMBER...".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("hostile_images: {e}");
            ExitCode::FAILURE
        }
    }
}

fn write_all(seed: &str, folder: &str, numbers: &[String]) -> Result<(), Box<dyn Error>> {
    let seed: u64 = seed.parse()?;
    for number in numbers {
        let image = write(seed, number.parse()?, &Path::new(folder).join(number))?;
        println!("{{\"image\": {number}, {image}}}");
    }
    Ok(())
}

/// Writes an image and tells about it.
fn write(seed: u64, number: u64, path: &Path) -> Result<String, Box<dyn Error>> {
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

    // Without what is zero, which would take up memory.
    let file = File::create(path)?;
    file.set_len(base.nr_blocks() * BLOCK_SIZE as u64)?;
    for block in 0..base.nr_blocks() {
        let data = image.block(block);
        if data.iter().any(|byte| *byte != 0) {
            file.write_all_at(data, block * BLOCK_SIZE as u64)?;
        }
    }
    let edits: Vec<_> = edits
        .iter()
        .map(|record| format!("\"{}\"", edit::describe(&image, record)))
        .collect();
    Ok(format!(
        "\"base\": \"{}\", \"data_blocks\": {}, \"block_sectors\": {DATA_BLOCK_SIZE}, \"edits\": [{}]",
        base.name,
        base.nr_data,
        edits.join(", ")
    ))
}
