// SPDX-License-Identifier: GPL-2.0

//! The checker finds what is wrong, beside `thin_check`.

use dm_thin_crash::{
    check::{
        check,
        seal,
        seal_of,
        Content, //
    },
    faults::Scene,
    rng::Rng,
    tools,
};

const BLOCK: usize = 4096;

fn image() -> Vec<u8> {
    Scene::all().disk().to_bytes()
}

fn content(image: &[u8]) -> Content {
    check(image).expect("a good image")
}

fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(data[at..at + 4].try_into().unwrap())
}

fn u64_at(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(data[at..at + 8].try_into().unwrap())
}

fn put(data: &mut [u8], at: usize, value: u64) {
    data[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Changes a block, and makes its checksum right again.
fn change(image: &mut [u8], block: usize, f: impl FnOnce(&mut [u8])) {
    let data = &mut image[block * BLOCK..][..BLOCK];
    let xor = seal_of(data).expect("a block with a checksum");
    f(data);
    seal(data, xor);
}

/// What the checker says after a change of one block.
fn finding(block: u64, f: impl FnOnce(&mut [u8])) -> String {
    let mut image = image();
    change(&mut image, block as usize, f);
    check(image.as_slice()).expect_err("it is wrong")
}

struct Places {
    mappings: u64,
    details: u64,
    metadata_index: u64,
    metadata_bitmap: u64,
    data_index: u64,
    data_bitmap: u64,
    data_ref_counts: u64,
    held: u64,
    device: u64,
    leaf: u64,
}

fn places(image: &[u8]) -> Places {
    let block = |block: u64| &image[block as usize * BLOCK..][..BLOCK];
    let first_value = |node: u64| {
        let data = block(node);
        u64_at(data, 32 + 8 * u32_at(data, 20) as usize)
    };
    let metadata_index = u64_at(image, 192 + 16);
    let data_index = u64_at(image, 64 + 16);
    let mappings = u64_at(image, 320);
    let device = first_value(mappings);
    Places {
        mappings,
        details: u64_at(image, 328),
        metadata_index,
        metadata_bitmap: u64_at(block(metadata_index), 16),
        data_index,
        data_bitmap: first_value(data_index),
        data_ref_counts: u64_at(image, 64 + 24),
        held: u64_at(image, 56),
        device,
        leaf: first_value(device),
    }
}

/// Where the values of a node are.
fn values(data: &[u8]) -> usize {
    32 + 8 * u32_at(data, 20) as usize
}

fn add(data: &mut [u8], at: usize, n: u64) {
    let value = u64_at(data, at).wrapping_add(n);
    put(data, at, value);
}

#[test]
fn each_kind_of_fault_is_found() {
    let image = image();
    let content = content(&image);
    tools::check(&image).expect("thin_check");
    assert_eq!(content.live.devices.len(), 3);
    assert!(content.held.is_some());
    let p = places(&image);
    assert_eq!(u32_at(&image[p.device as usize * BLOCK..], 4), 1);

    type Fault<'a> = (&'a str, u64, Box<dyn FnOnce(&mut [u8])>);
    let faults: Vec<Fault<'_>> = vec![
        ("magic", 0, Box::new(|d| add(d, 32, 1))),
        ("version", 0, Box::new(|d| d[40] = 7)),
        ("metadata block size", 0, Box::new(|d| d[340] = 9)),
        ("data block size", 0, Box::new(|d| d[336] = 1)),
        ("features", 0, Box::new(|d| d[360] = 1)),
        ("says it is", 0, Box::new(|d| d[8] = 1)),
        ("root says", 0, Box::new(|d| add(d, 64 + 8, 1))),
        ("root says", 0, Box::new(|d| add(d, 192 + 8, 1))),
        ("bitmaps for", 0, Box::new(|d| add(d, 64, 1 << 20))),
        ("mapped to", 0, Box::new(|d| put(d, 64, 300))),
        ("blocks", 0, Box::new(|d| add(d, 192, 1 << 20))),
        ("beyond the end", 0, Box::new(|d| put(d, 320, 1 << 40))),
        (
            "is TopLevel and Details",
            0,
            Box::new(|d| {
                let details = u64_at(d, 328);
                put(d, 320, details)
            }),
        ),
        ("at time 1", 0, Box::new(|d| d[44] = 1)),
        ("references", 0, Box::new(|d| put(d, 56, 0))),
        ("space maps", p.held, Box::new(|d| d[70] = 1)),
        ("future", p.held, Box::new(|d| d[44] = 200)),
        ("keys out of order", p.leaf, Box::new(|d| add(d, 32 + 8, 9))),
        (
            "mapped to",
            p.leaf,
            Box::new(|d| {
                let at = values(d);
                put(d, at, 5000 << 24)
            }),
        ),
        (
            "of the future",
            p.leaf,
            Box::new(|d| {
                let at = values(d);
                add(d, at, 0xff)
            }),
        ),
        (
            "references",
            p.leaf,
            Box::new(|d| {
                let at = values(d);
                add(d, at, 1 << 24)
            }),
        ),
        ("entries", p.leaf, Box::new(|d| d[16..20].fill(0))),
        ("entries", p.leaf, Box::new(|d| d[17] = 0xff)),
        (
            "mappings, its details say",
            p.leaf,
            Box::new(|d| {
                let n = u32_at(d, 16);
                d[16..20].copy_from_slice(&(n - 1).to_le_bytes())
            }),
        ),
        ("room for", p.leaf, Box::new(|d| d[21] = 0xff)),
        ("flags", p.leaf, Box::new(|d| d[4] = 3)),
        ("values of", p.leaf, Box::new(|d| d[24] = 4)),
        ("is not within", p.device, Box::new(|d| add(d, 32 + 8, 40))),
        (
            "is not within",
            p.device,
            Box::new(|d| {
                let at = values(d);
                let child = u64_at(d, at);
                put(d, at + 8, child)
            }),
        ),
        (
            "",
            p.device,
            Box::new(move |d| {
                let at = values(d);
                put(d, at, p.device)
            }),
        ),
        (
            "has no details",
            p.mappings,
            Box::new(|d| add(d, 32 + 16, 5)),
        ),
        (
            "has no details",
            p.details,
            Box::new(|d| add(d, 32 + 16, 5)),
        ),
        (
            "has no mappings",
            p.mappings,
            Box::new(|d| {
                let n = u32_at(d, 16);
                d[16..20].copy_from_slice(&(n - 1).to_le_bytes())
            }),
        ),
        (
            "its details say",
            p.details,
            Box::new(|d| {
                let at = values(d);
                add(d, at, 1)
            }),
        ),
        (
            "at time",
            p.details,
            Box::new(|d| {
                let at = values(d);
                d[at + 20] = 200
            }),
        ),
        (
            "the bitmap says",
            p.metadata_bitmap,
            Box::new(|d| d[16 + 2] ^= 4),
        ),
        (
            "the bitmap says",
            p.data_bitmap,
            Box::new(|d| d[16 + 2] ^= 8),
        ),
        ("the bitmap says", p.data_bitmap, Box::new(|d| d[4095] ^= 8)),
        (
            "the index says",
            p.metadata_index,
            Box::new(|d| d[16 + 8] ^= 1),
        ),
        (
            "the index says from",
            p.metadata_index,
            Box::new(|d| d[16 + 12] ^= 0xff),
        ),
        (
            "the index says",
            p.data_index,
            Box::new(|d| {
                let at = values(d);
                d[at + 8] ^= 1
            }),
        ),
        ("index entry", p.data_index, Box::new(|d| d[32] = 1)),
        (
            "bitmap",
            p.data_index,
            Box::new(move |d| {
                let at = values(d);
                put(d, at, p.metadata_bitmap)
            }),
        ),
        (
            "checksum",
            p.data_index,
            Box::new(move |d| {
                let at = values(d);
                put(d, at, 150)
            }),
        ),
        (
            "tree of counts",
            p.data_ref_counts,
            Box::new(|d| {
                d[16] = 1;
                let at = values(d);
                put(d, 32, 3);
                d[at] = 4
            }),
        ),
    ];
    let mut others = Vec::new();
    for (wanted, block, fault) in faults {
        let found = finding(block, fault);
        if !found.contains(wanted) {
            others.push((wanted, found));
        }
    }
    assert_eq!(others, []);
}

#[test]
fn a_block_that_is_not_sealed_is_found() {
    let image = image();
    let wanted = content(&image);
    let mut nr_found = 0;
    for block in 0..image.len() / BLOCK {
        let mut broken = image.clone();
        broken[block * BLOCK + 700] ^= 1;
        match check(broken.as_slice()) {
            Err(e) => {
                assert!(e.contains("checksum"), "{e}");
                nr_found += 1;
            }
            Ok(content) => content.expect(&wanted).expect("a block that is not in use"),
        }
    }
    assert!(nr_found > 15, "{nr_found}");
}

/// Whatever `thin_check` complains of, the checker does.
#[test]
fn it_is_as_strict_as_thin_check() {
    let image = image();
    let wanted = content(&image);
    let sealed: Vec<_> = (0..image.len() / BLOCK)
        .filter(|block| seal_of(&image[block * BLOCK..][..BLOCK]).is_some())
        .collect();
    let mut rng = Rng::new(5);
    let (mut nr_found, mut nr_both) = (0, 0);
    for _ in 0..300 {
        let block = sealed[rng.within(0..sealed.len() as u64) as usize];
        let mut broken = image.clone();
        let mut what = Vec::new();
        change(&mut broken, block, |data| {
            for _ in 0..rng.within(1..3) {
                let n = u64::from(u32_at(data, 16)).clamp(1, 250);
                let at = match rng.within(0..4) {
                    0 => rng.within(4..64),
                    1 => rng.within(32..32 + 8 * n),
                    2 => values(data).min(4000) as u64 + rng.within(0..8 * n),
                    _ => rng.within(4..BLOCK as u64),
                };
                let at = (at as usize).min(BLOCK - 1);
                let value = [0, 1, 0xff, rng.any() as u8][rng.within(0..4) as usize];
                what.push((at, data[at], value));
                data[at] = value;
            }
        });
        let ours = check(broken.as_slice()).and_then(|content| content.expect(&wanted));
        let theirs = tools::check(&broken);
        if ours.is_ok() {
            assert_eq!(theirs, Ok(()), "block {block}, {what:?}");
        }
        nr_found += u64::from(ours.is_err());
        nr_both += u64::from(ours.is_err() && theirs.is_err());
    }
    println!("{nr_found} found, {nr_both} by thin_check, too");
    assert!(nr_found > 50 && nr_both > 30);
}
