// SPDX-License-Identifier: GPL-2.0

//! Lists of changes that may be long: which parts of a volume are mapped, or not any more.

use std::{
    fs::File,
    io::{
        BufReader,
        BufWriter,
        Read,
        Seek,
        SeekFrom,
        Write, //
    },
};

use crate::{
    error::{
        Error,
        Result, //
    },
    home::Home, //
};

/// What has become of a part of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It is mapped, to other data than before.
    Mapped,
    /// It is not mapped any more.
    Unmapped,
}

/// A part of a volume, in blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// What has become of it.
    pub kind: Kind,
    /// Its first block.
    pub begin: u64,
    /// How many blocks it has.
    pub len: u64,
}

impl Extent {
    /// The block after its last one.
    pub fn end(&self) -> u64 {
        self.begin.saturating_add(self.len)
    }
}

/// Extents in ascending order, in a file that has no name, so that memory does not grow with them.
pub struct Extents {
    file: BufWriter<File>,
    last: Option<Extent>,
    /// The block after the last extent.
    pub end: u64,
}

impl Extents {
    /// An empty list.
    pub fn new(home: &Home) -> Result<Self> {
        let file = tempfile::tempfile_in(home.path("")).map_err(Error::io("list of extents"))?;
        Ok(Self {
            file: BufWriter::new(file),
            last: None,
            end: 0,
        })
    }

    /// Adds one block after all that were added before.
    pub fn push(&mut self, kind: Kind, block: u64) -> Result {
        self.end = block.saturating_add(1);
        match &mut self.last {
            Some(last) if last.kind == kind && last.end() == block => {
                last.len = last.len.saturating_add(1);
                Ok(())
            }
            last => {
                let before = last.replace(Extent {
                    kind,
                    begin: block,
                    len: 1,
                });
                before.map_or(Ok(()), |extent| self.write(extent))
            }
        }
    }

    fn write(&mut self, extent: Extent) -> Result {
        let kind = match extent.kind {
            Kind::Mapped => 0,
            Kind::Unmapped => 1,
        };
        let mut words = [0; ENTRY];
        for (to, from) in words
            .chunks_exact_mut(8)
            .zip([kind, extent.begin, extent.len])
        {
            to.copy_from_slice(&u64::to_le_bytes(from));
        }
        self.file
            .write_all(&words)
            .map_err(Error::io("list of extents"))
    }

    /// Goes through the list, as often as it is called.
    pub fn iter(&mut self) -> Result<Iter<'_>> {
        if let Some(last) = self.last.take() {
            self.write(last)?;
        }
        self.file
            .flush()
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(Error::io("list of extents"))?;
        Ok(Iter {
            file: BufReader::new(self.file.get_ref()),
        })
    }
}

/// The size of an extent in the file.
const ENTRY: usize = 24;

/// Goes through a list of extents.
pub struct Iter<'a> {
    file: BufReader<&'a File>,
}

impl Iterator for Iter<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        let mut entry = [0; ENTRY];
        match self.file.read_exact(&mut entry) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return None,
            Err(e) => return Some(Err(Error::Io("list of extents".to_owned(), e))),
        }
        let mut words = entry.chunks_exact(8).map(|word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            u64::from_le_bytes(bytes)
        });
        let mut next = || words.next().unwrap_or(0);
        let kind = match next() {
            0 => Kind::Mapped,
            _ => Kind::Unmapped,
        };
        Some(Ok(Extent {
            kind,
            begin: next(),
            len: next(),
        }))
    }
}
