// SPDX-License-Identifier: GPL-2.0

//! Maps, against mappings one by one.

use std::collections::{
    BTreeMap,
    BTreeSet, //
};

use persistent_data::direct::DirectBm;
use tempfile::NamedTempFile;
use thin_metadata::View;
use thinctl::{
    colour::{
        Colour,
        FREE,
        SHARED, //
    },
    map::{
        self,
        Cell,
        Map, //
    },
    svg::Svg,
    terminal::Terminal,
    usage::Usage, //
};

use crate::pools::{
    build,
    id,
    Op,
    Truth,
    NR_DATA, //
};

/// Compares what belongs to blocks to the mappings one by one.
pub fn check_blocks(view: &View<'_, DirectBm>, truth: &Truth, usage: &Usage, nr_cells: u32) {
    let mut owners: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    let mut mappings = BTreeMap::new();
    for &dev in truth.volumes.keys() {
        let mapped: &mut Vec<(u64, u64)> = mappings.entry(dev).or_default();
        view.for_mappings(id(dev), |virtual_block, value| {
            owners.entry(value.block()).or_default().insert(dev);
            mapped.push((virtual_block, value.block()));
            Ok(())
        })
        .expect("mappings");
    }
    assert_eq!(usage.used, owners.len() as u64);
    let shared = owners.values().filter(|owners| owners.len() > 1).count();
    assert_eq!(usage.shared, shared as u64);

    let map = map::pool(view, NR_DATA, nr_cells).expect("a map");
    let blocks = owners.iter().map(|(block, owners)| (*block, owners));
    check_map(&map, NR_DATA, nr_cells, blocks);
    for (dev, mapped) in mappings {
        let last = mapped
            .last()
            .map_or(0, |(virtual_block, _)| virtual_block + 1);
        for size in [None, Some(last + 1000), Some(last / 2)] {
            let map = map::volume(view, id(dev), size, NR_DATA, nr_cells).expect("a map");
            let size = size.unwrap_or(last);
            let blocks = mapped.iter().map(|(v, block)| (*v, &owners[block]));
            check_map(&map, size, nr_cells, blocks.filter(|(v, _)| *v < size));
        }
    }
}

/// Compares a map to the owners of its blocks.
fn check_map<'a>(
    map: &Map,
    nr_blocks: u64,
    nr_cells: u32,
    blocks: impl Iterator<Item = (u64, &'a BTreeSet<u64>)>,
) {
    assert_eq!(map.blocks, nr_blocks);
    assert_eq!(map.cells.len() as u64, nr_blocks.min(nr_cells.into()));
    let mut ends = Vec::new();
    let mut end = 0;
    for cell in &map.cells {
        end += cell.blocks;
        ends.push(end);
    }
    assert_eq!(end, nr_blocks);
    let sizes = map.cells.iter().map(|cell| cell.blocks);
    let difference = sizes.clone().max().unwrap_or(0) - sizes.min().unwrap_or(0);
    assert!(difference <= 1);

    let mut wanted = vec![(0, BTreeMap::<u64, u64>::new()); ends.len()];
    for (block, owners) in blocks {
        let cell = &mut wanted[ends.partition_point(|end| *end <= block)];
        match owners.len() {
            1 => {
                *cell
                    .1
                    .entry(*owners.first().expect("an owner"))
                    .or_default() += 1
            }
            _ => cell.0 += 1,
        }
    }
    for (cell, (shared, exclusive)) in map.cells.iter().zip(&wanted) {
        assert_eq!(cell.shared, *shared);
        assert_eq!(cell.exclusive, exclusive.values().sum::<u64>());
        match cell.volume {
            Some(id) => assert_eq!(exclusive.get(&id), exclusive.values().max()),
            None => assert!(exclusive.is_empty()),
        }
    }
    let sum = |f: fn(&Cell) -> u64| -> u64 { map.cells.iter().map(f).sum() };
    assert_eq!(map.shared, sum(|cell| cell.shared));
    assert_eq!(map.exclusive, sum(|cell| cell.exclusive));
}

/// A pool of which a quarter is exclusive, a quarter shared, and half free.
fn halved() -> (NamedTempFile, Vec<Map>) {
    let (file, _) = build(&[
        Op::Create(1),
        Op::Insert(1, 0, NR_DATA / 4, 1),
        Op::Snap(2, 1),
        Op::Create(3),
        Op::Insert(3, 10, NR_DATA / 4, 1),
    ]);
    let bm = DirectBm::open(file.path()).expect("the file opens");
    let view = View::new(&bm).expect("a superblock");
    let maps = [12, 13]
        .into_iter()
        .map(|nr_cells| map::pool(&view, NR_DATA, nr_cells).expect("a map"))
        .collect();
    (file, maps)
}

#[test]
fn a_map_is_drawn_in_a_terminal() {
    let (_file, maps) = halved();
    let mut terminal = Terminal {
        columns: 4,
        lines: 3,
        colours: false,
    };
    assert_eq!(terminal.nr_cells(), 12);
    let mut out = Vec::new();
    terminal.write(&maps[0], &mut out).expect("a drawing");
    let text = String::from_utf8(out).expect("UTF-8");
    let lines: Vec<_> = text.lines().take(3).collect();
    assert_eq!(lines, ["▒▒▒█", "██··", "····"]);

    terminal.colours = true;
    assert_eq!(terminal.nr_cells(), 24);
    let mut out = Vec::new();
    terminal.write(&maps[1], &mut out).expect("a drawing");
    let text = String::from_utf8(out).expect("UTF-8");
    let lines: Vec<_> = text.lines().collect();
    // Two rows of four, and then one row of four and one of a single cell.
    let halves: Vec<_> = lines.iter().map(|line| line.matches('▀').count()).collect();
    assert_eq!(halves, [4, 4, 0]);
    let shared = "\x1b[38;2;80;88;104m";
    let own = Colour::of_volume(3);
    let below = format!("\x1b[48;2;{};{};{}m▀", own.0, own.1, own.2);
    assert!(
        lines[0].starts_with(&format!("{shared}{below}")),
        "{:?}",
        lines[0]
    );
    assert!(lines[2].contains("volume 3") && !lines[2].contains("volume 1"));
}

#[test]
fn a_map_is_drawn_as_svg() {
    let (_file, maps) = halved();
    let svg = Svg {
        columns: 4,
        rows: 3,
        size: 5,
    };
    let mut out = Vec::new();
    svg.write(&maps[0], "a <b> & c", &mut out)
        .expect("a drawing");
    let text = String::from_utf8(out).expect("UTF-8");
    assert!(text.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
    assert!(text.ends_with("</svg>\n"));
    assert!(text.contains("<title>a &lt;b&gt; &amp; c</title>"));
    assert!(text.contains("30000 blocks: 7500 exclusive, 7500 shared, 15000 free"));
    let run = |width: u32, colour: Colour| {
        text.contains(&format!("width=\"{width}\" height=\"5\" fill=\"{colour}\""))
    };
    assert!(run(15, SHARED) && run(5, Colour::of_volume(3)) && run(10, Colour::of_volume(3)));
    assert!(run(10, FREE) && run(20, FREE));
    // The background, five runs, three entries of the legend.
    assert_eq!(text.matches("<rect").count(), 9);
}
