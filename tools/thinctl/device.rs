// SPDX-License-Identifier: GPL-2.0

//! Reading and writing block devices, past the page cache.

use std::{
    fs::{
        self,
        File,
        OpenOptions, //
    },
    io::{
        ErrorKind,
        Seek,
        SeekFrom, //
    },
    os::unix::fs::{
        FileExt,
        FileTypeExt,
        MetadataExt,
        OpenOptionsExt, //
    },
    path::{
        Path,
        PathBuf, //
    },
};

use block_devs::BlckExt;
use rustix::{
    fs::{
        fallocate,
        FallocateFlags,
        OFlags, //
    },
    io::Errno, //
};

use crate::{
    cut,
    dm::Dm,
    error::{
        Error,
        Result, //
    },
    pool::candidates,
};

/// How much is read or written at once, in bytes.
pub const CHUNK: usize = 1 << 20;

/// What devices want the address of a buffer to be a multiple of.
const ALIGNMENT: usize = 4096;

/// A buffer that devices take.
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// A zeroed buffer of [`CHUNK`] bytes.
    pub fn new() -> Self {
        Self::with_len(CHUNK)
    }

    /// A zeroed buffer of `len` bytes.
    pub fn with_len(len: usize) -> Self {
        let bytes = vec![0; len + ALIGNMENT];
        let start = bytes.as_ptr().addr().wrapping_neg() % ALIGNMENT;
        Self { bytes, start, len }
    }

    /// Its first `len` bytes, but no more than there are.
    pub fn get(&mut self, len: usize) -> &mut [u8] {
        let end = self.start + len.min(self.len);
        self.bytes.get_mut(self.start..end).unwrap_or_default()
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::new()
    }
}

/// The number of the block device whose node is `path`.
pub fn number(path: &Path) -> Result<devicemapper::Device> {
    number_in(
        &fs::metadata(path).map_err(Error::io(path.display()))?,
        path,
    )
}

fn number_in(metadata: &fs::Metadata, path: &Path) -> Result<devicemapper::Device> {
    if !metadata.file_type().is_block_device() {
        return Err(Error::Refused(format!(
            "{} is no block device",
            path.display()
        )));
    }
    Ok(metadata.rdev().into())
}

/// The node of the device that people call `path`: that of a block device, or lvm2's `vg/lv` or the name of a device of
/// device-mapper.
pub fn find(dm: &Dm, path: &Path) -> Result<PathBuf> {
    let node = fs::metadata(path);
    if !node
        .as_ref()
        .is_ok_and(|found| found.file_type().is_block_device())
    {
        for name in path.to_str().map(candidates).unwrap_or_default() {
            if let Some(info) = dm.info(&name)? {
                return Ok(info.path());
            }
        }
    }
    match node {
        Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::NotFound(format!(
            "there is no device {0}: neither a node, nor an active volume of lvm2 or device of device-mapper",
            path.display()
        ))),
        Ok(found) => number_in(&found, path).map(|_| path.to_owned()),
        Err(_) => Ok(path.to_owned()),
    }
}

/// Whether nothing can be written to a device.
pub fn is_read_only(number: devicemapper::Device) -> Result<bool> {
    let file = format!("/sys/dev/block/{number}/ro");
    let text = fs::read_to_string(&file).map_err(Error::io(&file))?;
    Ok(text.trim_end() != "0")
}

/// A block device.
pub struct Device {
    file: File,
    path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
}

impl Device {
    /// Opens a device for reading.
    pub fn open(path: &Path) -> Result<Self> {
        Self::with(path, OpenOptions::new().read(true), OFlags::DIRECT)
    }

    /// Opens a device for writing.
    pub fn open_for_writing(path: &Path) -> Result<Self> {
        Self::with(
            path,
            OpenOptions::new().read(true).write(true),
            OFlags::DIRECT,
        )
    }

    /// Opens a device for writing, which nobody else has mounted or made part of another device.
    pub fn open_exclusively(path: &Path) -> Result<Self> {
        let flags = OFlags::DIRECT | OFlags::EXCL;
        Self::with(path, OpenOptions::new().read(true).write(true), flags)
    }

    fn with(path: &Path, options: &mut OpenOptions, flags: OFlags) -> Result<Self> {
        let mut file = options
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .map_err(Error::io(path.display()))?;
        let size = file
            .seek(SeekFrom::End(0))
            .map_err(Error::io(path.display()))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            size,
        })
    }

    /// Fills `buffer` with what is at `offset`.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(Error::io(format!("{} at {offset}", self.path.display())))
    }

    /// Writes all of `data` at `offset`.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result {
        cut::point();
        self.file
            .write_all_at(data, offset)
            .map_err(Error::io(format!("{} at {offset}", self.path.display())))
    }

    /// Discards; says whether the device can do that.
    pub fn discard(&self, offset: u64, len: u64) -> Result<bool> {
        cut::point();
        match self.file.block_discard(offset, len) {
            Ok(()) => Ok(true),
            Err(e) if Errno::from_io_error(&e) == Some(Errno::OPNOTSUPP) => Ok(false),
            Err(e) => Err(Error::Io(
                format!("{}: discard at {offset}", self.path.display()),
                e,
            )),
        }
    }

    /// Makes sure that zeroes are read, and that they take up no space where the device can see to that.
    pub fn zero(&self, offset: u64, len: u64) -> Result {
        cut::point();
        let unmapped = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // The kernel writes zeroes itself if the device has nothing better.
        fallocate(&self.file, unmapped, offset, len)
            .or_else(|_| fallocate(&self.file, FallocateFlags::ZERO_RANGE, offset, len))
            .map_err(|e| {
                Error::Io(
                    format!("{}: zeroes at {offset}", self.path.display()),
                    e.into(),
                )
            })
    }

    /// Its size in bytes at this moment.
    pub fn size_now(&self) -> Result<u64> {
        (&self.file)
            .seek(SeekFrom::End(0))
            .map_err(Error::io(self.path.display()))
    }

    /// Its number; an error if it is no block device.
    pub fn number(&self) -> Result<devicemapper::Device> {
        let metadata = self.file.metadata();
        number_in(
            &metadata.map_err(Error::io(self.path.display()))?,
            &self.path,
        )
    }

    /// The size of the smallest part of it that can be read or written, in bytes.
    pub fn sector_size(&self) -> Result<u64> {
        self.file
            .get_size_of_block()
            .map_err(Error::io(self.path.display()))
    }

    /// Makes all that was written stable.
    pub fn flush(&self) -> Result {
        cut::point();
        File::sync_data(&self.file).map_err(Error::io(format!("{}: flush", self.path.display())))
    }
}
