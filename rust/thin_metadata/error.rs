// SPDX-License-Identifier: GPL-2.0

//! What can go wrong with a pool's metadata.

use core::fmt;

use crate::device::DeviceId;

/// The result of everything in this crate that may fail.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

/// An error, with what it is about. Its text is good for one line of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The device failed, or what it holds is not valid.
    Library(persistent_data::Error),
    /// What was asked for is not in memory, and the caller does not want to wait for the device.
    WouldBlock,
    /// No metadata block is free.
    NoMetadataSpace,
    /// No data block is free, or those that are were freed since the last commit. Nothing was changed: the
    /// transaction goes on.
    NoDataSpace,
    /// The metadata may not be changed now.
    ReadOnly,
    /// The superblock is all zeroes, and may not be formatted.
    Unformatted,
    /// The pool's data blocks have another size, in sectors.
    DataBlockSize {
        /// What the superblock says.
        found: u32,
        /// What the caller says.
        wanted: u32,
    },
    /// The superblock's metadata block size, in sectors, is another than the only valid one.
    MetadataBlockSize(u32),
    /// The version of the format is not known.
    Version(u32),
    /// Features are in use without which the metadata cannot be understood.
    IncompatFeatures(u32),
    /// Features are in use without which the metadata can be read but not written.
    CompatRoFeatures(u32),
    /// The superblock names a root at a block where none can be.
    BadRoot {
        /// Whose root it is.
        what: &'static str,
        /// Where it should be.
        block: u64,
    },
    /// No device id: it has more than 24 bits.
    BadDeviceId(u64),
    /// There is a device of this id already.
    DeviceExists(DeviceId),
    /// There is no device of this id.
    NoDevice(DeviceId),
    /// The device is open and so may not be deleted.
    DeviceOpen(DeviceId),
    /// That many devices are open and so the metadata may not be closed.
    DevicesOpen(usize),
    /// The handle is not one of a device that is open in this pool.
    BadHandle,
    /// The transaction id is another than the caller believes.
    TransactionId {
        /// What it is.
        found: u64,
        /// What the caller says that it is.
        wanted: u64,
    },
    /// There is a metadata snapshot already.
    SnapHeld(u64),
    /// There is no metadata snapshot.
    NoSnap,
    /// A device cannot get smaller.
    Shrink {
        /// Its size in blocks.
        from: u64,
        /// What was asked for.
        to: u64,
    },
    /// A data device cannot have so many blocks: a mapping has 40 bits for them.
    TooManyDataBlocks(u64),
    /// A range of blocks that ends before it begins, or a data block beyond the end of the data device.
    BadBlocks {
        /// Its first block.
        begin: u64,
        /// The first block beyond it.
        end: u64,
    },
    /// A mapping to a block beyond the end of the data device.
    BadMapping {
        /// Whose mapping it is.
        device: DeviceId,
        /// The block of that device.
        virtual_block: u64,
        /// The block of the data device.
        data_block: u64,
    },
    /// A device's count of mapped blocks contradicts its mappings.
    MappedBlocks(DeviceId),
    /// A device was part of a snapshot at a time that there is not.
    BadTime(DeviceId),
    /// The pool's clock has reached its end: no more snapshots can be taken.
    EndOfTime,
    /// The data device could not be flushed, with this (positive) errno.
    DataFlush(i32),
    /// A commit has been prepared: it must be finished, or aborted, before the next change.
    Prepared,
    /// No commit is at this step: none was prepared, or what it has written was not flushed since.
    NotPrepared,
    /// An earlier error has left the transaction in an undefined state: it must be aborted.
    NeedsAbort,
    /// An abort failed: nothing but closing works any more.
    Failed,
}

impl Error {
    /// The positive errno that the kernel's C implementation gives for the same fault, where it has one.
    pub fn errno(self) -> i32 {
        const EPERM: i32 = 1;
        const EAGAIN: i32 = 11;
        const EBUSY: i32 = 16;
        const EEXIST: i32 = 17;
        const EINVAL: i32 = 22;
        const ENOSPC: i32 = 28;
        const ENODATA: i32 = 61;
        const EILSEQ: i32 = 84;

        match self {
            Self::Library(e) => e.errno(),
            Self::WouldBlock => EAGAIN,
            Self::NoMetadataSpace | Self::NoDataSpace => ENOSPC,
            Self::ReadOnly | Self::Unformatted => EPERM,
            Self::BadRoot { .. }
            | Self::BadMapping { .. }
            | Self::MappedBlocks(_)
            | Self::BadTime(_) => EILSEQ,
            Self::DeviceExists(_) => EEXIST,
            Self::NoDevice(_) => ENODATA,
            Self::DeviceOpen(_) | Self::DevicesOpen(_) | Self::SnapHeld(_) | Self::Prepared => {
                EBUSY
            }
            Self::DataFlush(errno) => errno,
            Self::DataBlockSize { .. }
            | Self::MetadataBlockSize(_)
            | Self::Version(_)
            | Self::IncompatFeatures(_)
            | Self::CompatRoFeatures(_)
            | Self::BadDeviceId(_)
            | Self::BadHandle
            | Self::TransactionId { .. }
            | Self::NoSnap
            | Self::Shrink { .. }
            | Self::TooManyDataBlocks(_)
            | Self::BadBlocks { .. }
            | Self::EndOfTime
            | Self::NotPrepared
            | Self::NeedsAbort
            | Self::Failed => EINVAL,
        }
    }
}

impl From<persistent_data::Error> for Error {
    fn from(e: persistent_data::Error) -> Self {
        match e {
            persistent_data::Error::WouldBlock => Self::WouldBlock,
            persistent_data::Error::NoSpace => Self::NoMetadataSpace,
            persistent_data::Error::ReadOnly => Self::ReadOnly,
            e => Self::Library(e),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(e) => e.fmt(f),
            Self::WouldBlock => f.write_str("block is not in memory"),
            Self::NoMetadataSpace => f.write_str("no free metadata block"),
            Self::NoDataSpace => f.write_str("no free data block"),
            Self::ReadOnly => f.write_str("metadata is read-only"),
            Self::Unformatted => f.write_str("superblock is all zeroes"),
            Self::DataBlockSize { found, wanted } => write!(
                f,
                "changing the data block size (from {found} to {wanted}) is not supported"
            ),
            Self::MetadataBlockSize(found) => {
                write!(f, "metadata block size of {found} sectors is not supported")
            }
            Self::Version(found) => write!(f, "format version {found} is not supported"),
            Self::IncompatFeatures(flags) => write!(f, "unsupported incompat features {flags:#x}"),
            Self::CompatRoFeatures(flags) => {
                write!(f, "features {flags:#x} are unsupported when not read-only")
            }
            Self::BadRoot { what, block } => {
                write!(f, "superblock says that the {what} is at block {block}")
            }
            Self::BadDeviceId(id) => write!(f, "device id {id} has more than 24 bits"),
            Self::DeviceExists(id) => write!(f, "device {id} exists already"),
            Self::NoDevice(id) => write!(f, "there is no device {id}"),
            Self::DeviceOpen(id) => write!(f, "device {id} is open"),
            Self::DevicesOpen(count) => write!(f, "{count} devices are still open"),
            Self::BadHandle => f.write_str("handle of a device that is not open"),
            Self::TransactionId { found, wanted } => {
                write!(f, "transaction id is {found}, not {wanted}")
            }
            Self::SnapHeld(block) => write!(f, "there is a metadata snapshot already, at {block}"),
            Self::NoSnap => f.write_str("there is no metadata snapshot"),
            Self::Shrink { from, to } => write!(f, "cannot shrink from {from} to {to} blocks"),
            Self::TooManyDataBlocks(count) => {
                write!(f, "{count} data blocks are more than mappings can hold")
            }
            Self::BadBlocks { begin, end } => write!(f, "bad range of blocks, {begin} to {end}"),
            Self::BadMapping {
                device,
                virtual_block,
                data_block,
            } => write!(
                f,
                "device {device} maps block {virtual_block} to {data_block}, beyond the data device"
            ),
            Self::MappedBlocks(id) => {
                write!(f, "count of mapped blocks of device {id} is wrong")
            }
            Self::BadTime(id) => {
                write!(f, "device {id} has a snapshot of a time that cannot be")
            }
            Self::EndOfTime => f.write_str("no more snapshots can be taken of this pool"),
            Self::DataFlush(errno) => write!(f, "flush of the data device failed, error {errno}"),
            Self::Prepared => f.write_str("a commit is under way"),
            Self::NotPrepared => f.write_str("no commit is at this step"),
            Self::NeedsAbort => f.write_str("transaction failed before and was not aborted"),
            Self::Failed => f.write_str("metadata could not be rolled back"),
        }
    }
}

#[cfg(not(CONFIG_RUST))]
impl std::error::Error for Error {}

#[cfg(CONFIG_RUST)]
impl kernel::fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(CONFIG_RUST)]
impl From<Error> for kernel::error::Error {
    fn from(e: Error) -> Self {
        kernel::error::Error::from_errno(-e.errno())
    }
}
