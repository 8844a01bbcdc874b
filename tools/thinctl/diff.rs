// SPDX-License-Identifier: GPL-2.0

//! Which blocks of two volumes are the same, and which are not.

use std::io::Write;

use persistent_data::block_manager::BlockManager;
use serde::Serialize;
use thin_metadata::{
    format::{
        BlockTime,
        SECTOR_SIZE, //
    },
    DeviceId,
    View, //
};

use crate::{
    error::{
        Error,
        Result, //
    },
    walk::try_walk,
};

/// What a block is in two volumes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Both map it, to different data blocks.
    Differ,
    /// Only the left one maps it.
    LeftOnly,
    /// Only the right one maps it.
    RightOnly,
    /// Both map it to the same data block.
    Same,
}

impl Kind {
    fn of(left: Option<BlockTime>, right: Option<BlockTime>) -> Option<Self> {
        match (left, right) {
            (Some(l), Some(r)) if l.block() == r.block() => Some(Self::Same),
            (Some(_), Some(_)) => Some(Self::Differ),
            (Some(_), None) => Some(Self::LeftOnly),
            (None, Some(_)) => Some(Self::RightOnly),
            (None, None) => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Differ => "differ",
            Self::LeftOnly => "left only",
            Self::RightOnly => "right only",
            Self::Same => "same",
        }
    }
}

/// Adjacent virtual blocks of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Range {
    /// What they are.
    pub kind: Kind,
    /// The first one.
    pub begin: u64,
    /// How many there are.
    pub length: u64,
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Header {
    /// The id of the one volume.
    pub left: u64,
    /// The id of the other.
    pub right: u64,
    /// The size of a block in bytes.
    pub block_size: u64,
}

/// How many blocks there are of each kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Totals {
    /// Of [`Kind::Differ`].
    pub differ: u64,
    /// Of [`Kind::LeftOnly`].
    pub left_only: u64,
    /// Of [`Kind::RightOnly`].
    pub right_only: u64,
    /// Of [`Kind::Same`]; what is left of the mappings that the left volume says it has, if they were not counted.
    pub same: u64,
}

/// What [`diff`] tells.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Options {
    /// Also ranges that are the same, for which all mappings must be read.
    pub same: bool,
}

/// Takes ranges, in ascending order.
pub trait Sink {
    /// Comes first.
    fn begin(&mut self, header: &Header) -> Result;

    /// The next range.
    fn range(&mut self, range: &Range) -> Result;

    /// Comes last.
    fn end(&mut self, totals: &Totals) -> Result;
}

/// Tells `sink` what two volumes of one view differ in.
///
/// Neighbours of one kind are one range. Unless [`Options::same`], this takes as long as there are differences.
pub fn diff<B: BlockManager>(
    view: &View<'_, B>,
    left: DeviceId,
    right: DeviceId,
    options: Options,
    sink: &mut dyn Sink,
) -> Result<Totals> {
    let details = view
        .device(left)?
        .ok_or(thin_metadata::Error::NoDevice(left))?;
    let sectors = view.superblock().data_block_size.get();
    sink.begin(&Header {
        left: left.into(),
        right: right.into(),
        block_size: u64::from(sectors) * SECTOR_SIZE,
    })?;

    let mut ranges = Ranges::new(sink);
    try_walk(|visit| {
        let each = |block, l, r| {
            visit(match Kind::of(l, r) {
                Some(kind) => ranges.add(kind, block),
                None => Ok(()),
            })
        };
        match options.same {
            true => view.merge(left, right, each),
            false => view.diff(left, right, each),
        }
    })?;
    let mut totals = ranges.finish()?;
    if !options.same {
        let others = totals.differ.saturating_add(totals.left_only);
        totals.same = details.mapped_blocks.get().saturating_sub(others);
    }
    sink.end(&totals)?;
    Ok(totals)
}

/// Makes ranges of blocks.
struct Ranges<'s> {
    sink: &'s mut dyn Sink,
    last: Option<Range>,
    totals: Totals,
}

impl<'s> Ranges<'s> {
    fn new(sink: &'s mut dyn Sink) -> Self {
        Self {
            sink,
            last: None,
            totals: Totals::default(),
        }
    }

    fn add(&mut self, kind: Kind, block: u64) -> Result {
        if let Some(last) = &mut self.last {
            if last.kind == kind && last.begin.checked_add(last.length) == Some(block) {
                last.length = last.length.saturating_add(1);
                return Ok(());
            }
        }
        self.put()?;
        self.last = Some(Range {
            kind,
            begin: block,
            length: 1,
        });
        Ok(())
    }

    fn put(&mut self) -> Result {
        let Some(range) = self.last.take() else {
            return Ok(());
        };
        let total = match range.kind {
            Kind::Differ => &mut self.totals.differ,
            Kind::LeftOnly => &mut self.totals.left_only,
            Kind::RightOnly => &mut self.totals.right_only,
            Kind::Same => &mut self.totals.same,
        };
        *total = total.saturating_add(range.length);
        self.sink.range(&range)
    }

    fn finish(mut self) -> Result<Totals> {
        self.put()?;
        Ok(self.totals)
    }
}

fn written(result: std::io::Result<()>) -> Result {
    result.map_err(Error::io("cannot write"))
}

/// Writes ranges for people: one a line, in blocks.
pub struct Text<W>(pub W);

/// The width of the column of kinds, and of those of numbers.
const KIND: usize = 10;
const NUMBER: usize = 21;

/// Writes a number at the end of a column.
fn align_right(column: &mut [u8], mut n: u64) {
    for byte in column.iter_mut().rev() {
        *byte = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            return;
        }
    }
}

impl<W: Write> Sink for Text<W> {
    fn begin(&mut self, _: &Header) -> Result {
        written(writeln!(
            self.0,
            "{:<KIND$}{:>NUMBER$}{:>NUMBER$}",
            "", "BEGIN", "LENGTH"
        ))
    }

    // There may be so many of them that `write!` takes longer than to find them.
    fn range(&mut self, range: &Range) -> Result {
        let mut line = [b' '; KIND + 2 * NUMBER];
        let (kind, numbers) = line.split_at_mut(KIND);
        let (begin, length) = numbers.split_at_mut(NUMBER);
        for (to, from) in kind.iter_mut().zip(range.kind.name().bytes()) {
            *to = from;
        }
        align_right(begin, range.begin);
        align_right(length, range.length);
        written(self.0.write_all(&line))?;
        written(self.0.write_all(b"\n"))
    }

    fn end(&mut self, totals: &Totals) -> Result {
        let Totals {
            differ,
            left_only,
            right_only,
            same,
        } = totals;
        written(writeln!(
            self.0,
            "{differ} differ, {left_only} left only, {right_only} right only, {same} same"
        ))?;
        written(self.0.flush())
    }
}

/// Writes ranges as one JSON object, with a range a line.
pub struct Json<W> {
    out: W,
    is_first: bool,
}

impl<W: Write> Json<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            is_first: true,
        }
    }

    fn value(&mut self, before: &str, value: &impl Serialize, after: &str) -> Result {
        written(self.out.write_all(before.as_bytes()))?;
        serde_json::to_writer(&mut self.out, value)
            .map_err(|e| Error::Io("cannot write".into(), e.into()))?;
        written(self.out.write_all(after.as_bytes()))
    }
}

impl<W: Write> Sink for Json<W> {
    fn begin(&mut self, header: &Header) -> Result {
        self.value("{\"header\":", header, ",\n\"ranges\":[")
    }

    fn range(&mut self, range: &Range) -> Result {
        let before = match std::mem::take(&mut self.is_first) {
            true => "\n",
            false => ",\n",
        };
        self.value(before, range, "")
    }

    fn end(&mut self, totals: &Totals) -> Result {
        self.value("],\n\"totals\":", totals, "}\n")?;
        written(self.out.flush())
    }
}
