// SPDX-License-Identifier: GPL-2.0

//! Names of volumes and of their files.

use std::path::{
    Path,
    PathBuf, //
};

use crate::{
    error::{
        Error,
        Result, //
    },
    repository::Kind, //
};

/// How many digits the number of a generation has, or more.
const DIGITS: usize = 6;

/// The name of a generation's files, without what tells one from the other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Name {
    pub(super) number: u64,
    pub(super) kind: Kind,
}

/// A file of a generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    Stream,
    Manifest,
}

impl Name {
    pub(super) fn stream(self) -> String {
        self.file(Part::Stream)
    }

    pub(super) fn manifest(self) -> String {
        self.file(Part::Manifest)
    }

    fn file(self, part: Part) -> String {
        let Self { number, kind } = self;
        let kind = kind.name();
        let part = match part {
            Part::Stream => "thin",
            Part::Manifest => "json",
        };
        format!("{number:06}.{kind}.{part}")
    }

    /// What a file is, if it is one of a generation.
    pub(super) fn parse(file: &str) -> Option<(Self, Part)> {
        let (number, rest) = file.split_once('.')?;
        let (kind, part) = match rest {
            "full.thin" => (Kind::Full, Part::Stream),
            "full.json" => (Kind::Full, Part::Manifest),
            "incremental.thin" => (Kind::Incremental, Part::Stream),
            "incremental.json" => (Kind::Incremental, Part::Manifest),
            _ => return None,
        };
        let number = number.parse().ok()?;
        let name = Self { number, kind };
        // Each has one name only.
        (name.file(part) == file).then_some((name, part))
    }
}

impl Name {
    /// Whether what a name is made of is that of the data of this generation.
    pub(super) fn is_of(self, text: &str) -> bool {
        text.strip_prefix(&format!("{:06}", self.number))
            .is_some_and(|rest| rest.starts_with('-'))
    }

    /// Whether what a name is made of begins as those of a generation's files do.
    pub(super) fn begins(text: &str) -> bool {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        digits >= DIGITS
            && text
                .as_bytes()
                .get(digits)
                .is_some_and(|&c| c == b'.' || c == b'-')
    }
}

/// The most bytes that the name of a volume has.
const MAX_NAME: usize = 200;

/// The name of a volume in a repository, for clap.
pub fn parse_name(text: &str) -> std::result::Result<String, String> {
    let bad = text.is_empty()
        || text.len() > MAX_NAME
        || text.starts_with('.')
        || text.contains('/')
        || text.chars().any(char::is_control);
    match bad {
        true => Err(format!(
            "the name of a volume in a repository has at most {MAX_NAME} bytes, no slash or control character, and no dot at \
             its beginning"
        )),
        false => Ok(text.to_owned()),
    }
}

/// The folder of a volume.
pub(super) fn folder(root: &Path, volume: &str) -> Result<PathBuf> {
    let name = parse_name(volume).map_err(|e| Error::Refused(format!("{volume:?}: {e}")))?;
    Ok(root.join(name))
}
