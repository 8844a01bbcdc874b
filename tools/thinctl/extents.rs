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

use zerocopy::{
    little_endian::{
        U32,
        U64, //
    },
    FromZeros,
    IntoBytes, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
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
    /// How many were written.
    count: u64,
    /// The checksum of those that were written, each of which has that of all before it and itself.
    checksum: u32,
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
            count: 0,
            checksum: 0,
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
        let mut entry = Entry {
            words: [kind, extent.begin, extent.len].map(U64::new),
            checksum: U32::ZERO,
        };
        self.checksum = entry.checksum_after(self.checksum);
        entry.checksum = self.checksum.into();
        self.file
            .write_all(entry.as_bytes())
            .map_err(Error::io("list of extents"))?;
        self.count = self.count.saturating_add(1);
        Ok(())
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
            left: self.count,
            checksum: 0,
        })
    }
}

/// An extent in the file.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Entry {
    /// The kind, the first block, how many there are.
    words: [U64; 3],
    checksum: U32,
}

impl Entry {
    /// The checksum of all entries so far, with this one.
    fn checksum_after(&self, before: u32) -> u32 {
        crc32c::crc32c_append(before, self.words.as_bytes())
    }
}

/// Goes through a list of extents. A file system may lose what was written to a file; blocks that are not in the list any
/// more would not be copied, and nobody would know.
pub struct Iter<'a> {
    file: BufReader<&'a File>,
    left: u64,
    checksum: u32,
}

impl Iter<'_> {
    fn read(&mut self) -> Result<Extent> {
        let mut entry = Entry::new_zeroed();
        self.file
            .read_exact(entry.as_mut_bytes())
            .map_err(Error::io("list of extents"))?;
        self.checksum = entry.checksum_after(self.checksum);
        let [kind, begin, len] = entry.words.map(U64::get);
        let kind = match kind {
            0 => Kind::Mapped,
            _ => Kind::Unmapped,
        };
        if entry.checksum.get() != self.checksum || len == 0 {
            return Err(Error::Damaged(
                "the list of extents, a file in --home, is not what was written".to_owned(),
            ));
        }
        Ok(Extent { kind, begin, len })
    }
}

impl Iterator for Iter<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        self.left = self.left.checked_sub(1)?;
        let read = self.read();
        if read.is_err() {
            self.left = 0;
        }
        Some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_has_lost_something_is_told_of() -> Result {
        let folder = tempfile::tempdir().map_err(Error::io("folder"))?;
        let home = Home::at(folder.path())?;
        let list = || -> Result<Extents> {
            let mut list = Extents::new(&home)?;
            for block in 0..1000 {
                list.push(Kind::Mapped, 2 * block)?;
            }
            assert_eq!(list.iter()?.filter(Result::is_ok).count(), 1000);
            Ok(list)
        };
        let fails = |list: &mut Extents| -> Result<bool> { Ok(list.iter()?.any(|e| e.is_err())) };
        let size = 1000 * size_of::<Entry>() as u64;
        let io = || Error::io("list");
        for len in [0, 1, size - size_of::<Entry>() as u64, size - 1] {
            let mut list = list()?;
            list.file.get_ref().set_len(len).map_err(io())?;
            assert!(fails(&mut list)?, "cut off at {len}");
            // A page that was lost reads as zeroes.
            list.file.get_ref().set_len(size).map_err(io())?;
            assert!(fails(&mut list)?, "zeroes from {len} on");
        }
        for (at, len) in [(0, 512), (4096, 4096), (size - 4, 4)] {
            let mut list = list()?;
            let file = list.file.get_ref();
            std::os::unix::fs::FileExt::write_all_at(file, &vec![0; len], at).map_err(io())?;
            assert!(fails(&mut list)?, "{len} zeroes at {at}");
        }
        Ok(())
    }
}
