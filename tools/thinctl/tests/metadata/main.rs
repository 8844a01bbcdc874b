// SPDX-License-Identifier: GPL-2.0

//! What is read from metadata, against what thin-provisioning-tools find in the same images.

mod maps;
mod pools;

use std::{
    os::unix::fs::FileExt,
    process::Command, //
};

use persistent_data::{
    block_manager::BlockManager,
    direct::DirectBm, //
};
use proptest::prelude::*;
use tempfile::NamedTempFile;
use thin_metadata::View;
use thinctl::{
    diff::{
        self,
        Json,
        Kind,
        Options,
        Range,
        Sink,
        Text,
        Totals, //
    },
    relations::Relation,
    usage::usage, //
};

use pools::{
    build,
    id,
    ops,
    Op,
    NR_DATA, //
};

fn run(tool: &str, args: &[&str], file: &NamedTempFile) -> String {
    let output = Command::new(tool)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args(args)
        .arg(file.path())
        .output()
        .unwrap_or_else(|e| panic!("{tool} cannot run, install thin-provisioning-tools: {e}"));
    assert!(output.status.success(), "{tool} {args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Puts neighbours of one kind together.
fn merged(ranges: &[Range]) -> Vec<Range> {
    let mut merged: Vec<Range> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.kind == range.kind && last.begin + last.length == range.begin => {
                last.length += range.length;
            }
            _ => merged.push(*range),
        }
    }
    merged
}

fn thin_delta(file: &NamedTempFile, left: u64, right: u64) -> Vec<Range> {
    let (left, right) = (left.to_string(), right.to_string());
    let xml = run("thin_delta", &["--snap1", &left, "--snap2", &right], file);
    let kinds = [
        ("<different ", Kind::Differ),
        ("<left_only ", Kind::LeftOnly),
        ("<right_only ", Kind::RightOnly),
        ("<same ", Kind::Same),
    ];
    let number = |line: &str, name: &str| -> u64 {
        let (_, value) = line
            .split_once(&format!("{name}=\""))
            .expect("an attribute");
        value
            .split('"')
            .next()
            .expect("a value")
            .parse()
            .expect("a number")
    };
    let ranges: Vec<Range> = xml
        .lines()
        .filter_map(|line| {
            let line = line.trim();
            let (_, kind) = kinds.iter().find(|(word, _)| line.starts_with(word))?;
            Some(Range {
                kind: *kind,
                begin: number(line, "begin"),
                length: number(line, "length"),
            })
        })
        .collect();
    merged(&ranges)
}

#[derive(Default)]
struct Collected(Vec<Range>, Option<Totals>);

impl Sink for Collected {
    fn begin(&mut self, header: &diff::Header) -> thinctl::Result {
        assert_eq!(header.block_size, 65536);
        Ok(())
    }

    fn range(&mut self, range: &Range) -> thinctl::Result {
        self.0.push(*range);
        Ok(())
    }

    fn end(&mut self, totals: &Totals) -> thinctl::Result {
        self.1 = Some(*totals);
        Ok(())
    }
}

fn ranges(view: &View<'_, DirectBm>, left: u64, right: u64, same: bool) -> (Vec<Range>, Totals) {
    let mut sink = Collected::default();
    let totals = diff::diff(view, id(left), id(right), Options { same }, &mut sink).expect("diff");
    assert_eq!(sink.1, Some(totals));
    assert_eq!(sink.0, merged(&sink.0));
    (sink.0, totals)
}

fn check_diff(file: &NamedTempFile, view: &View<'_, DirectBm>, left: u64, right: u64) {
    let wanted = thin_delta(file, left, right);
    let (found, totals) = ranges(view, left, right, true);
    assert_eq!(found, wanted, "{left} {right}");
    let sum = |kind| -> u64 {
        let of_kind = wanted.iter().filter(|range| range.kind == kind);
        of_kind.map(|range| range.length).sum()
    };
    let sums = Totals {
        differ: sum(Kind::Differ),
        left_only: sum(Kind::LeftOnly),
        right_only: sum(Kind::RightOnly),
        same: sum(Kind::Same),
    };
    assert_eq!(totals, sums);

    let (found, totals) = ranges(view, left, right, false);
    let changes: Vec<Range> = wanted
        .into_iter()
        .filter(|range| range.kind != Kind::Same)
        .collect();
    assert_eq!((found, totals), (changes, sums));
}

/// Id, mapped, exclusive and shared blocks.
fn thin_ls(file: &NamedTempFile) -> Vec<[u64; 4]> {
    let format = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS";
    run("thin_ls", &["--no-headers", "--format", format], file)
        .lines()
        .map(|line| {
            let numbers: Vec<u64> = line
                .split_whitespace()
                .map(|word| word.parse().expect("a number"))
                .collect();
            numbers.try_into().expect("four columns")
        })
        .collect()
}

proptest! {
    #![proptest_config({
        let mut config = ProptestConfig::with_cases(60);
        config.failure_persistence = None;
        config
    })]

    #[test]
    fn random_pools_are_what_the_tools_find(ops in ops(), nr_cells in 1..5000u32) {
        let (file, truth) = build(&ops);
        let bm = DirectBm::open(file.path()).expect("the file opens");
        let view = View::new(&bm).expect("a superblock");
        for (n, left) in truth.volumes.keys().enumerate() {
            for right in truth.volumes.keys().skip(n + 1) {
                check_diff(&file, &view, *left, *right);
                check_diff(&file, &view, *right, *left);
            }
        }
        let usage = usage(&view, NR_DATA).expect("usage");
        let found: Vec<_> = usage
            .volumes
            .iter()
            .map(|v| [v.id, v.mapped, v.exclusive, v.shared])
            .collect();
        prop_assert_eq!(found, thin_ls(&file));
        for volume in &usage.volumes {
            prop_assert!(truth.allows(volume.id, volume.relation), "{:?}", volume);
        }
        maps::check_blocks(&view, &truth, &usage, nr_cells);
    }
}

#[test]
fn relations_are_told_where_they_can_be() {
    let (file, _) = build(&[
        Op::Create(1),
        Op::Insert(1, 0, 100, 1),
        Op::Snap(2, 1),
        // Created at the time of a snapshot that is still there.
        Op::Create(3),
        Op::Insert(3, 0, 10, 1),
        Op::Snap(4, 2),
        // The origin of 2 is part of another snapshot now, and so its relation is lost.
        Op::Snap(5, 1),
        Op::Insert(5, 0, 100, 1),
        Op::Create(10),
        Op::Snap(6, 3),
        Op::Delete(3),
    ]);
    let bm = DirectBm::open(file.path()).expect("the file opens");
    let view = View::new(&bm).expect("a superblock");
    let usage = usage(&view, NR_DATA).expect("usage");
    let found: Vec<_> = usage.volumes.iter().map(|v| (v.id, v.relation)).collect();
    let wanted = [
        (1, Relation::Volume),
        (2, Relation::Snapshot),
        (4, Relation::SnapshotOf { origin: 2 }),
        // It was overwritten, and so it could also be 10 that is the snapshot.
        (5, Relation::Unknown { origin: Some(1) }),
        (6, Relation::Snapshot),
        (10, Relation::Unknown { origin: Some(1) }),
    ];
    assert_eq!(found, wanted);
}

#[test]
fn ranges_are_written_as_text_and_json() {
    let (file, _) = build(&[
        Op::Create(1),
        Op::Insert(1, 0, 10, 1),
        Op::Snap(2, 1),
        Op::Insert(2, 3, 2, 1),
        Op::Remove(2, 8, 1),
        Op::Insert(2, 20, 1, 1),
    ]);
    let bm = DirectBm::open(file.path()).expect("the file opens");
    let view = View::new(&bm).expect("a superblock");
    let options = Options { same: false };
    let mut text = Vec::new();
    diff::diff(&view, id(1), id(2), options, &mut Text(&mut text)).expect("diff");
    let wanted = [
        "                          BEGIN               LENGTH",
        "differ                        3                    2",
        "left only                     8                    1",
        "right only                   20                    1",
        "2 differ, 1 left only, 1 right only, 7 same\n",
    ]
    .join("\n");
    assert_eq!(String::from_utf8(text).expect("UTF-8"), wanted);

    let mut text = Vec::new();
    let range = Range {
        kind: Kind::Same,
        begin: u64::MAX,
        length: 10_200,
    };
    Text(&mut text).range(&range).expect("text");
    let wanted = "same       18446744073709551615                10200\n";
    assert_eq!(String::from_utf8(text).expect("UTF-8"), wanted);

    let options = Options { same: true };
    let mut json = Vec::new();
    diff::diff(&view, id(1), id(2), options, &mut Json::new(&mut json)).expect("diff");
    let found: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    let range = |kind: &str, begin, length| serde_json::json!({"kind": kind, "begin": begin, "length": length});
    let wanted = serde_json::json!({
        "header": {"left": 1, "right": 2, "block_size": 65536},
        "ranges": [
            range("same", 0, 3),
            range("differ", 3, 2),
            range("same", 5, 3),
            range("left_only", 8, 1),
            range("same", 9, 1),
            range("right_only", 20, 1),
        ],
        "totals": {"differ": 2, "left_only": 1, "right_only": 1, "same": 7},
    });
    assert_eq!(found, wanted);

    // Nothing to tell is valid JSON, too.
    let mut json = Vec::new();
    let options = Options::default();
    diff::diff(&view, id(1), id(1), options, &mut Json::new(&mut json)).expect("diff");
    let found: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    assert_eq!(found["ranges"], serde_json::json!([]));
    assert_eq!(found["totals"]["same"], 10);

    // An output that fails ends it.
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    for same in [false, true] {
        let result = diff::diff(&view, id(1), id(2), Options { same }, &mut Json::new(Full));
        assert!(matches!(result, Err(thinctl::Error::Io(..))));
    }
    let missing = diff::diff(&view, id(1), id(9), options, &mut Json::new(Vec::new()));
    assert!(matches!(missing, Err(thinctl::Error::NotFound(_))));
}

#[test]
fn a_mapping_beyond_the_data_device_is_told() {
    let (file, _) = build(&[Op::Create(1), Op::Insert(1, 0, 300, 1)]);
    let bm = DirectBm::open(file.path()).expect("the file opens");
    let view = View::new(&bm).expect("a superblock");
    usage(&view, 300).expect("usage");
    let result = usage(&view, 299);
    let is_told = matches!(
        result,
        Err(thinctl::Error::Metadata(thin_metadata::Error::BadMapping {
            virtual_block: 299,
            data_block: 299,
            ..
        }))
    );
    assert!(is_told, "{result:?}");
}

#[test]
fn nodes_beyond_the_device_are_told() {
    let (file, _) = build(&[Op::Create(1), Op::Insert(1, 0, 1000, 1), Op::Snap(2, 1)]);
    let bm = DirectBm::open(file.path()).expect("the file opens");
    let view = View::new(&bm).expect("a superblock");
    let root = view.device_tree(id(1)).expect("a tree").root();
    let mut data = bm.read_raw(root).expect("the root").to_vec();
    // The second child of an internal node, of 252 entries at most.
    data[32 + 8 * 252 + 8..][..8].copy_from_slice(&1_000_000u64.to_le_bytes());
    let sum = !crc32c::crc32c(&data[4..]) ^ 121_107;
    data[..4].copy_from_slice(&sum.to_le_bytes());
    file.as_file()
        .write_all_at(&data, root * 4096)
        .expect("write");

    let bm = DirectBm::open(file.path()).expect("the file opens");
    let view = View::new(&bm).expect("a superblock");
    let beyond = persistent_data::Error::OutOfBounds(1_000_000);
    let wanted = thin_metadata::Error::Library(beyond);
    match usage(&view, NR_DATA) {
        Err(thinctl::Error::Metadata(e)) => assert_eq!(e, wanted),
        result => panic!("{result:?}"),
    }
    let mut sink = Collected::default();
    for (right, is_read) in [(2, false), (1, true)] {
        let options = Options { same: is_read };
        match diff::diff(&view, id(1), id(right), options, &mut sink) {
            Err(thinctl::Error::Metadata(e)) => assert_eq!((e, is_read), (wanted, true)),
            // What both share is not read.
            result => assert!(result.is_ok() && !is_read),
        }
    }
}
