// SPDX-License-Identifier: GPL-2.0

//! The corpus and some random inputs, without a sanitizer, and what the oracles are worth.

use crate::{
    base,
    checker::{
        self,
        Depth, //
    },
    edit,
    format,
    image::{
        get,
        set,
        Image,
        Kind, //
    },
    input::{
        Input,
        Record,
        HEADER,
        RECORD, //
    },
    mutator::{
        self,
        Random, //
    },
    program, //
};

/// The inputs of a corpus, one a line.
fn corpus(text: &str) -> Vec<Vec<u8>> {
    let digit = |c: u8| (c as char).to_digit(16).expect("a hexadecimal digit") as u8;
    let byte = |pair: &[u8; 2]| digit(pair[0]) << 4 | digit(pair[1]);
    text.lines()
        .map(|line| line.as_bytes().as_chunks().0.iter().map(byte).collect())
        .collect()
}

#[test]
fn the_corpus_of_pools_does_no_harm() {
    let mut opened = 0;
    let corpus = corpus(include_str!("corpus/pool.hex"));
    for bytes in &corpus {
        opened += usize::from(program::play(bytes).opened);
    }
    // An input that no pool opens with finds little.
    assert!(opened > corpus.len() / 2, "{opened} of {}", corpus.len());
}

#[test]
fn the_corpus_of_blocks_does_no_harm() {
    for bytes in corpus(include_str!("corpus/format.hex")) {
        format::read(&bytes);
    }
}

/// An input of some edits and operations.
fn input(seed: u64, max_edits: usize) -> Vec<u8> {
    let random = &mut Random::new(seed);
    let mut bytes = vec![seed as u8, 0, 0, 0];
    for _ in 0..random.below(max_edits + 1) {
        bytes.extend(mutator::edit(random).to_bytes());
    }
    for _ in 0..random.below(40) {
        bytes.extend(mutator::operation(random).to_bytes());
    }
    bytes
}

#[test]
fn random_inputs_do_no_harm() {
    let (mut worked, mut failed, mut commits) = (0, 0, 0);
    for seed in 0..2000 {
        let outcome = program::play(&input(seed, [0, 1, 4][seed as usize % 3]));
        worked += outcome.worked;
        failed += outcome.failed;
        commits += outcome.commits;
    }
    assert!(
        worked > 10_000 && failed > 5_000 && commits > 1_000,
        "{worked} {failed} {commits}"
    );
}

#[test]
fn any_bytes_are_an_input() {
    let random = &mut Random::new(1);
    for len in 0..100_usize {
        let bytes: Vec<_> = (0..len).map(|_| random.word() as u8).collect();
        let input = Input::of(&bytes);
        let records = input.edits.len() + input.operations.len();
        assert_eq!(records, len.saturating_sub(HEADER) / RECORD);
        program::play(&bytes);
        format::read(&bytes);
    }
}

#[test]
fn mutated_inputs_fit() {
    for max in [0, 3, HEADER + RECORD - 1, HEADER + RECORD, 200] {
        let mut data = vec![0; max];
        let mut size = 0;
        for seed in 0..200 {
            size = mutator::mutate(&mut data, size, max, seed);
            assert!(size <= max);
        }
        assert_eq!(size > HEADER, max >= HEADER + RECORD);
    }
}

fn examine(image: &Image) -> Result<(), String> {
    checker::examine(image, Depth::All).map(drop)
}

#[test]
fn base_images_are_all_right() {
    for base in base::all() {
        assert_eq!(examine(&Image::new(base)), Ok(()), "{}", base.name);
        assert_eq!(base.counts().len() as u64, base.nr_blocks());
    }
}

/// An image with blocks of all kinds whose counts go beyond what bitmaps hold.
fn image() -> Image {
    let many = base::all()
        .iter()
        .find(|base| base.name == "many references");
    Image::new(many.expect("it is one of them"))
}

#[test]
fn the_checker_sees_counts_that_are_wrong() {
    // Metadata and data, to each count that it is not.
    for kind in [7, 8] {
        for block in 0..20 {
            let mut seen = 0;
            for count in 0..4 {
                let mut image = image();
                let edit = Record {
                    kind,
                    a: 0,
                    b: block,
                    c: count,
                };
                edit::apply(&mut image, &[edit]);
                seen += u32::from(examine(&image).is_err());
            }
            assert_eq!(seen, 3, "kind {kind}, block {block}");
        }
    }
}

#[test]
fn the_checker_sees_nodes_that_are_wrong() {
    let root = get(image().block(0), 328, 8);
    let edits: [(usize, usize, u64); 7] = [
        (4, 4, 3),
        (8, 8, root + 1),
        (16, 4, 1000),
        (20, 4, 127),
        (24, 4, 8),
        // The first key, and a root of the mapping tree.
        (32, 8, 1000),
        (0, 0, 0),
    ];
    for (offset, width, value) in edits {
        let mut image = image();
        set(image.block_mut(root), offset, width, value);
        match width {
            // A checksum that is wrong.
            0 => set(image.block_mut(root), 4000, 1, 77),
            _ => image.seal(root),
        }
        assert!(examine(&image).is_err(), "{offset}");
    }
}

#[test]
fn edits_get_past_the_checksums() {
    let mut changed = 0;
    for seed in 0..500 {
        let base = &base::all()[seed as usize % base::all().len()];
        let mut image = Image::new(base);
        let record = mutator::edit(&mut Random::new(seed));
        edit::apply(&mut image, &[record]);
        for block in image.changed() {
            let kind = image.kind(block);
            let sealed = kind == Kind::Other || kind.is_right(image.block(block));
            assert!(
                sealed || record.kind & 0x70 == 0x70,
                "{}",
                edit::describe(&image, &record)
            );
            changed += u32::from(Some(image.block(block)) != base.block(block));
        }
    }
    assert!(changed > 300, "{changed}");
}
