// SPDX-License-Identifier: GPL-2.0

//! What the program says of its command line, and how it ends, as far as no pool is needed for it.

use std::{
    fs::OpenOptions,
    path::Path,
    process::{
        Command,
        Output, //
    },
};

const FAILED: i32 = 1;
const USAGE: i32 = 2;

/// The commands that read a pool's metadata.
const READERS: [&str; 13] = [
    "ls",
    "map",
    "diff",
    "send",
    "receive",
    "abandon",
    "backup",
    "restore",
    "migrate",
    "merge",
    "replicate",
    "kept",
    "forget",
];

fn thinctl(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thinctl"));
    command
        .args(words)
        .current_dir(folder)
        .env("THINCTL_HOME", folder.join("home"))
        .env("THINCTL_RUN", folder.join("run"));
    command
}

/// Its exit code, and what it said.
fn told(Output { status, stderr, .. }: Output) -> (i32, String) {
    let text = String::from_utf8(stderr).unwrap();
    (status.code().unwrap(), text)
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let made = thinctl(folder.path(), &["init", "backups"])
        .status()
        .unwrap();
    assert!(made.success());
    for words in [
        ["--help"].as_slice(),
        &["-h"],
        &["--version"],
        &["help"],
        &["help", "migrate"],
        &["migrate", "--help"],
        &["backups", "backups"],
        &["backups", "backups", "--json"],
        &["verify", "backups"],
    ] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = thinctl(folder.path(), words).stdout(full).output().unwrap();
        let (code, text) = told(output);
        assert_eq!(code, FAILED, "{words:?}: {text}");
        assert!(text.contains("standard output: No space"), "{text}");

        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = thinctl(folder.path(), words)
            .stdout(writer)
            .output()
            .unwrap();
        assert_eq!(told(output), (128 + 13, String::new()), "{words:?}");
    }
}

#[track_caller]
fn wrong(words: &[&str], part: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (code, text) = told(thinctl(folder.path(), words).output().unwrap());
    assert_eq!(code, USAGE, "{words:?}: {text}");
    assert!(text.contains(part), "{words:?}: {text}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn numbers_that_make_no_sense() {
    for words in [
        ["map", "pool", "--width", "0"].as_slice(),
        &["prune", "backups", "home", "--keep", "0"],
        &["prune", "backups", "home", "--keep", "-1"],
        &["prune", "backups", "home", "--keep", "many"],
        &[
            "restore",
            "backups",
            "home",
            "pool",
            "1",
            "--generation",
            "0",
        ],
        &["replicate", "pool", "0", "--to", "cat", "--turns", "0"],
        &["replicate", "pool", "0", "--to", "cat", "--patience", "0"],
    ] {
        wrong(words, "whole number, 1 or more");
    }
    wrong(&["send", "pool", "0", "--level", "20"], "from 1 to 19");
    wrong(&["send", "pool", "0", "--rate", "0"], "nothing would");
    wrong(
        &["replicate", "pool", "0", "--to", "cat", "--every", "-1"],
        "whole number",
    );
    wrong(&["token", "pool", "-1"], "from 0 to 16777215");
}

#[test]
fn names_that_nothing_can_have() {
    let long = "x".repeat(201);
    for name in ["", "..", ".hidden", "a/b", "a\nb", &long] {
        for words in [
            ["backups", "backups", name].as_slice(),
            &["verify", "backups", name],
            &["prune", "backups", name, "--keep", "1"],
            &["restore", "backups", name, "pool", "1"],
            &["backup", "pool", "0", "backups", "--name", name],
        ] {
            wrong(words, "name of a volume in a repository");
        }
    }
    for name in ["", "a\nb"] {
        for words in [
            ["status", name].as_slice(),
            &["ls", name],
            &["diff", "pool", "0", name],
            &["backup", "pool", name, "backups"],
            &["receive", name, "1"],
            &["migrate", "pool:0", name],
        ] {
            wrong(words, "name");
        }
    }
    wrong(&["replicate", "pool", "0", "--to", ""], "--to");
    wrong(&["migrate", ":0", "pool"], "POOL:ID");
}

#[test]
fn a_volume_is_not_migrated_to_itself() {
    for to in ["pool:0", "pool"] {
        wrong(&["migrate", "pool:0", to], "to itself");
    }
}

#[test]
fn force_is_offered_where_metadata_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let help = |words: &[&str]| {
        let output = thinctl(folder.path(), words).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let mut commands = 0;
    for line in help(&["-h"]).lines() {
        let Some(name) = line
            .strip_prefix("  ")
            .and_then(|line| line.split(' ').next())
            .filter(|name| name.chars().all(char::is_alphabetic) && !name.is_empty())
            .filter(|name| *name != "help")
        else {
            continue;
        };
        commands += 1;
        let offered = help(&[name, "--help"]).contains("--force");
        assert_eq!(offered, READERS.contains(&name), "{name}");
    }
    assert!(commands > READERS.len(), "{commands}");
    assert!(!help(&["--help"]).contains("--force"));
    wrong(&["init", "--force", "backups"], "--force");
}
