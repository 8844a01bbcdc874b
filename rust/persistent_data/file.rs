// SPDX-License-Identifier: GPL-2.0

//! A block manager over a file or block device, for tools.

use std::{
    fs::{
        File,
        OpenOptions, //
    },
    io::{
        self,
        Seek,
        SeekFrom, //
    },
    os::unix::fs::FileExt,
    path::Path,
};

use crate::{
    block::{
        BlockData,
        BlockNr,
        BLOCK_SIZE, //
    },
    block_manager::BlockManager,
    cached::{
        CachedBm,
        Device, //
    },
    error::{
        Error,
        Result, //
    },
};

/// The number of blocks that the cache holds on to: 64 MiB.
const CACHE_LIMIT: usize = 16384;

const EIO: i32 = 5;

/// The block manager over a file.
pub type FileBm = CachedBm<FileDevice>;

/// A file or block device.
pub struct FileDevice {
    file: File,
    nr_blocks: BlockNr,
}

impl FileDevice {
    fn new(mut file: File) -> Result<Self> {
        // A block device's metadata has no length, so ask for its end.
        let len = file.seek(SeekFrom::End(0)).map_err(io_error)?;
        Ok(Self {
            file,
            nr_blocks: len / BLOCK_SIZE as u64,
        })
    }
}

fn io_error(e: io::Error) -> Error {
    Error::Io(e.raw_os_error().unwrap_or(EIO))
}

fn offset(block: BlockNr) -> Result<u64> {
    block
        .checked_mul(BLOCK_SIZE as u64)
        .ok_or(Error::OutOfBounds(block))
}

impl Device for FileDevice {
    fn nr_blocks(&self) -> BlockNr {
        self.nr_blocks
    }

    fn read(&self, block: BlockNr, data: &mut BlockData) -> Result {
        self.file
            .read_exact_at(data, offset(block)?)
            .map_err(io_error)
    }

    fn write(&self, block: BlockNr, data: &BlockData) -> Result {
        self.file
            .write_all_at(data, offset(block)?)
            .map_err(io_error)
    }

    fn flush(&self) -> Result {
        self.file.sync_data().map_err(io_error)
    }
}

impl FileBm {
    /// Opens a file or block device for reading only.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self> {
        let file = File::open(path).map_err(io_error)?;
        let bm = Self::over(FileDevice::new(file)?, CACHE_LIMIT)?;
        bm.set_read_only(true);
        Ok(bm)
    }

    /// Opens a file or block device for reading and writing.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(io_error)?;
        Self::over(FileDevice::new(file)?, CACHE_LIMIT)
    }

    /// Makes a zeroed file of `nr_blocks` blocks, in place of any that is there.
    pub fn create(path: impl AsRef<Path>, nr_blocks: BlockNr) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(io_error)?;
        file.set_len(offset(nr_blocks)?).map_err(io_error)?;
        Self::over(FileDevice::new(file)?, CACHE_LIMIT)
    }
}
