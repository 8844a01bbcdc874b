// SPDX-License-Identifier: GPL-2.0

//! Adds a generation.

use std::{
    io::{
        self,
        PipeReader,
        PipeWriter,
        Read,
        Write, //
    },
    path::Path,
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    thread, //
};

use super::{
    generation::{
        Generation,
        Kind,
        Source, //
    },
    lock::Locked,
};
use crate::{
    error::{
        Error,
        Result, //
    },
    files::{
        make_folder,
        remove,
        remove_empty,
        sync_folder,
        NewFile, //
    },
    stream::{
        self,
        Changes,
        Header,
        Reader,
        Totals, //
    },
};

impl Locked {
    /// Makes the next generation of a volume from the stream that `write` writes: all that was mapped, or what has
    /// changed since the last generation. What is written is read at the same time, so that only a stream without any
    /// damage gets in.
    pub fn add(
        &self,
        volume: &str,
        source: Option<Source>,
        write: impl FnOnce(&mut dyn Write) -> Result,
    ) -> Result<Generation> {
        let folder = self.folder(volume)?;
        let last = self.last_of_chain(volume);
        let number = match self.numbers(volume)?.last_key_value() {
            None => Some(1),
            Some((last, _)) => last.checked_add(1),
        };
        let about = About {
            number: number.ok_or_else(|| Error::Refused(format!("{volume}: no number is left")))?,
            created: stream::now(),
            source,
        };
        let number = about.number;
        let check = |header: &Header| {
            if header.start != 0 {
                return Err(Error::Refused(format!(
                    "{volume}: a backup cannot begin at byte {}",
                    header.start
                )));
            }
            let Some(from) = header.from else {
                return Ok(());
            };
            // On what cannot be restored, there is nothing to build.
            match last? {
                Some(last) if last.header.to == from && last.header.size <= header.size => Ok(()),
                Some(last) if last.header.to == from => Err(Error::Refused(format!(
                    "{volume}: the volume has shrunk, which takes a full backup"
                ))),
                Some(last) => Err(Error::Refused(format!(
                    "{volume}: the stream starts from {from}, and the last backup leads to {}",
                    last.header.to
                ))),
                None => Err(Error::Refused(format!(
                    "{volume}: the first backup must be a full one"
                ))),
            }
        };
        let is_free = || match self.numbers(volume)?.contains_key(&number) {
            false => self.check(),
            true => Err(Error::Busy(format!(
                "{volume}: another process has made generation {number} meanwhile"
            ))),
        };
        let new = make_folder(&folder)?;
        let result = put(&folder, about, check, &is_free, write);
        if result.is_err() && new {
            // If this fails, an empty folder is left, which says nothing.
            let _ = remove_empty(&folder);
        }
        result
    }
}

/// What is said of a generation that its stream does not tell.
pub(super) struct About {
    pub(super) number: u64,
    pub(super) created: u64,
    pub(super) source: Option<Source>,
}

/// Writes the files of a generation. `may` says right before each is put in place whether it still may be.
pub(super) fn put(
    folder: &Path,
    about: About,
    check: impl FnOnce(&Header) -> Result + Send,
    may: &dyn Fn() -> Result,
    write: impl FnOnce(&mut dyn Write) -> Result,
) -> Result<Generation> {
    let About {
        number,
        created,
        source,
    } = about;
    // What kind it is, its header tells.
    let mut file = NewFile::new(folder, &format!("{number:06}"))?;
    let (header, totals) = checked(&mut file, check, write)?;
    let generation = Generation {
        number,
        kind: match header.from {
            None => Kind::Full,
            Some(_) => Kind::Incremental,
        },
        created,
        source,
        header,
        totals,
    };
    file.sync()?;
    if file.len()? != generation.totals.stored {
        return Err(Error::Damaged(
            "the stream was not written as it was read".into(),
        ));
    }
    may()?;
    let name = generation.name();
    let placed = generation
        .store(folder)
        .and_then(|()| may())
        .and_then(|()| file.commit(&name.stream()));
    if let Err(e) = placed {
        if take_back(folder, &generation).is_err() {
            file.leave();
        }
        return Err(e);
    }
    // Whoever was at it on another host, which locks do not reach, may have taken it for what was left behind.
    if !folder.join(generation.name().manifest()).exists() {
        generation.store(folder)?;
    }
    Ok(generation)
}

/// Removes the manifest of a generation that is not whole. Alone, it would be that of data which are lost. It may be in place
/// although that has failed, and it may be somebody else's. The unfinished file, which tells that the generation was cut off, may
/// go only if the manifest is gone for good.
fn take_back(folder: &Path, generation: &Generation) -> Result {
    let name = generation.name();
    let stream = folder.join(name.stream());
    let is_whole = stream.try_exists().map_err(Error::io(stream.display()))?;
    match Generation::load(folder, name) {
        Ok(there) if there == *generation && !is_whole => {
            remove(&folder.join(name.manifest()))?;
            sync_folder(folder)
        }
        Err(e @ Error::Io(..)) => Err(e),
        _ => Ok(()),
    }
}

/// Lets `write` write to `w`, and reads it as a stream at the same time.
fn checked(
    w: &mut dyn Write,
    check: impl FnOnce(&Header) -> Result + Send,
    write: impl FnOnce(&mut dyn Write) -> Result,
) -> Result<(Header, Totals)> {
    let (mut reader, writer) = io::pipe().map_err(Error::io("a pipe"))?;
    let given_up = &AtomicBool::new(false);
    thread::scope(|scope| {
        let read = move || {
            read(&mut reader, check).inspect_err(|_| {
                given_up.store(true, Ordering::Relaxed);
                // A pipe that nobody reads may end the process.
                let _ = io::copy(&mut reader, &mut io::sink());
            })
        };
        let reading = thread::Builder::new()
            .spawn_scoped(scope, read)
            .map_err(Error::io("a thread"))?;
        let mut tee = Tee {
            w,
            writer,
            given_up,
            refused: false,
        };
        let written = write(&mut tee);
        let refused = tee.refused;
        // The reader gets to the end.
        drop(tee);
        let read = reading
            .join()
            .unwrap_or_else(|_| Err(Error::Damaged("the stream could not be checked".into())));
        match written {
            Err(e) if !refused => Err(e),
            _ => read,
        }
    })
}

fn read(pipe: &mut PipeReader, check: impl FnOnce(&Header) -> Result) -> Result<(Header, Totals)> {
    let mut reader = Reader::new(&mut *pipe)?;
    check(reader.header())?;
    while reader.next()?.is_some() {}
    let header = reader.header().clone();
    let Some(totals) = reader.totals().cloned() else {
        return Err(Error::Damaged("the stream has no end".into()));
    };
    let more = io::copy(&mut pipe.take(1), &mut io::sink()).map_err(Error::io("a pipe"))?;
    match more {
        0 => Ok((header, totals)),
        _ => Err(Error::Damaged(format!(
            "something follows the stream, at byte {}",
            totals.stored
        ))),
    }
}

/// Writes to two places.
struct Tee<'a> {
    w: &'a mut dyn Write,
    writer: PipeWriter,
    /// Whether the reader does not want to have any more.
    given_up: &'a AtomicBool,
    /// Whether that was said.
    refused: bool,
}

impl Write for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.given_up.load(Ordering::Relaxed) {
            self.refused = true;
            return Err(io::Error::other("the stream is refused"));
        }
        self.w.write_all(bytes)?;
        self.writer.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.w.flush()
    }
}
