// SPDX-License-Identifier: GPL-2.0

//! A chain of backups as one.

use std::{
    collections::{
        BTreeMap,
        VecDeque, //
    },
    fs::{
        self,
        OpenOptions, //
    },
    path::Path,
};

use rustix::process::{
    getrlimit,
    setrlimit,
    Resource,
    Rlimit, //
};

use super::{
    generation::Generation,
    layout::{
        Layout, //
        Piece,
    },
};
use crate::{
    error::{
        Error,
        Result, //
    },
    files::open_regular,
    signals,
    stream::{
        Changes,
        Header,
        Place,
        Record,
        Stored,
        MAX_DATA, //
    },
};

/// A chain of backups as one that starts from nothing: of everything, the newest.
///
/// It knows where the data are, and reads them one frame after the other. All files are open from the beginning, so that
/// it can be read to the end even if the backups are removed meanwhile.
pub struct Fold {
    header: Header,
    files: Vec<Stored>,
    /// What is yet to be read.
    pieces: BTreeMap<u64, Piece>,
    frames: Frames,
    /// Whether there was an error.
    broken: bool,
}

impl Fold {
    /// Finds out where the data are; the chain is one that is all right.
    pub(super) fn new(folder: &Path, chain: &[Generation]) -> Result<Self> {
        allow_open(chain.len());
        let mut pieces = Layout::default();
        let mut files: Vec<Stored> = Vec::new();
        for generation in chain {
            let path = folder.join(generation.name().stream());
            let open = open_regular(&path, OpenOptions::new().read(true))
                .map_err(Error::io(path.display()))?;
            let mut stored = Stored::new(open)?;
            let file = files.len();
            let totals = stored.places(|place| match place {
                Place::Data { offset, len, at } => {
                    let skip = 0;
                    pieces.put(
                        offset,
                        Piece {
                            len,
                            file,
                            at,
                            skip,
                        },
                    );
                }
                Place::Discard { offset, len } => pieces.remove(offset, len),
            })?;
            if *stored.header() != generation.header || totals != generation.totals {
                return Err(Error::Damaged(format!(
                    "{}: the stream is not that of the manifest",
                    path.display()
                )));
            }
            files.push(stored);
        }
        let last = chain
            .last()
            .ok_or_else(|| Error::NotFound("there is nothing to restore".into()))?;
        Ok(Self {
            header: Header {
                from: None,
                data: pieces.total(),
                ..last.header.clone()
            },
            files,
            pieces: pieces.into_map(),
            frames: Frames::default(),
            broken: false,
        })
    }

    fn record(&mut self) -> Result<Option<Record>> {
        let Some((offset, first)) = self.pieces.pop_first() else {
            return Ok(None);
        };
        let mut data = Vec::new();
        self.frames.append(&mut data, &self.files, offset, first)?;
        // What follows goes along, as far as a frame reaches.
        let mut end = offset.saturating_add(first.len);
        while let Some(entry) = self.pieces.first_entry() {
            let (at, next) = (*entry.key(), *entry.get());
            let len = end.saturating_sub(offset).saturating_add(next.len);
            if at != end || len > MAX_DATA as u64 {
                break;
            }
            entry.remove();
            self.frames.append(&mut data, &self.files, at, next)?;
            end = end.saturating_add(next.len);
        }
        Ok(Some(Record::Data { offset, data }))
    }
}

impl Changes for Fold {
    fn header(&self) -> &Header {
        &self.header
    }

    fn next(&mut self) -> Result<Option<Record>> {
        if self.broken {
            return Err(Error::Damaged("what is restored was given up".into()));
        }
        self.record().inspect_err(|_| self.broken = true)
    }

    /// From the same files, whatever has become of their names.
    fn rehearse(&mut self) -> Result {
        let pieces = self.pieces.clone();
        while self.next()?.is_some() {
            signals::check()?;
        }
        self.pieces = pieces;
        Ok(())
    }
}

/// Lets the process have that many files open besides what it has, if it may.
fn allow_open(files: usize) {
    let limit = getrlimit(Resource::Nofile);
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    // A few more for what is open for a short time.
    let wanted = files.saturating_add(open).saturating_add(64);
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
    if limit.current.is_some_and(|current| current < wanted) {
        let current = limit.maximum.map_or(wanted, |most| most.min(wanted));
        // If not, opening the files says so.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(current),
                ..limit
            },
        );
    }
}

/// The data of the frames that were used last: newer backups have parts of what older frames have, so one goes to and
/// fro between a few of them.
#[derive(Default)]
struct Frames {
    frames: VecDeque<Frame>,
}

struct Frame {
    file: usize,
    at: u64,
    data: Vec<u8>,
}

/// How many frames are kept: 32 MiB.
const KEPT: usize = 32;

impl Frames {
    /// Adds what a piece has.
    fn append(&mut self, to: &mut Vec<u8>, files: &[Stored], offset: u64, piece: Piece) -> Result {
        let damaged =
            || Error::Damaged(format!("the data for byte {offset} are not there any more"));
        let Piece {
            len,
            file,
            at,
            skip,
        } = piece;
        let known = self
            .frames
            .iter()
            .position(|frame| (frame.file, frame.at) == (file, at));
        let frame = match known.and_then(|i| self.frames.remove(i)) {
            Some(frame) => frame,
            None => {
                let data = files.get(file).ok_or_else(damaged)?.data(at)?;
                Frame { file, at, data }
            }
        };
        let range = || {
            let begin = usize::try_from(skip).ok()?;
            let end = begin.checked_add(usize::try_from(len).ok()?)?;
            frame.data.get(begin..end)
        };
        to.extend_from_slice(range().ok_or_else(damaged)?);
        self.frames.truncate(KEPT.saturating_sub(1));
        self.frames.push_front(frame);
        Ok(())
    }
}
