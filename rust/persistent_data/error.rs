// SPDX-License-Identifier: GPL-2.0

//! What can go wrong, and exactly where.

use core::fmt;

use crate::block::BlockNr;

/// The result of everything in this crate that may fail.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

/// What is wrong with the content of a block that has the right location and checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Corruption {
    /// A btree node is neither a leaf nor internal, or both.
    NodeFlags,
    /// A btree node's value size does not match its tree, or its space does not fit a block.
    ValueSize,
    /// A btree node holds more entries than it has space for.
    TooManyEntries,
    /// A btree node that must hold entries holds none.
    EmptyNode,
    /// A btree node's keys do not ascend.
    KeyOrder,
    /// A tree is deeper than any valid tree can be: it has a loop.
    TooDeep,
    /// Nodes of a tree that should be at one level are not.
    Unbalanced,
    /// A count or position in a space map's index contradicts the size of the space map.
    SpaceMapIndex,
    /// An array block's counts or value size do not fit.
    ArrayBlock,
    /// The magic number of a superblock is another.
    Magic,
    /// A field of a superblock holds a value that is not possible.
    SuperblockField,
    /// A reference to a block that no reference may be to.
    Reference,
    /// The space map says that the superblock's own block is free.
    SuperblockFree,
}

/// An error, with the block that it is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// An allocation of memory failed.
    NoMemory,
    /// A space map has no free block left.
    NoSpace,
    /// The key is not in the tree.
    NoData,
    /// The block is not in memory, and the caller does not want to wait for it.
    WouldBlock,
    /// A change to a block manager that is read-only.
    ReadOnly,
    /// The caller's arguments make no sense, for instance an index beyond an array's end.
    Invalid,
    /// A feature flag of the on-disk format that is not supported.
    Unsupported,
    /// The device failed to read, write or flush, with this (positive) errno.
    Io(i32),
    /// A block number beyond the end of the device or space map.
    OutOfBounds(BlockNr),
    /// A block was asked for while a conflicting guard of it is held: two references to one block in a
    /// structure that may hold only one.
    Conflict(BlockNr),
    /// A block was read as something other than what it was read or written as before.
    WrongValidator(BlockNr),
    /// A block says that it lives at another location.
    WrongLocation {
        /// Where it was read.
        block: BlockNr,
        /// Where it says it lives.
        found: BlockNr,
    },
    /// A block's checksum is wrong.
    Checksum {
        /// Where it was read.
        block: BlockNr,
        /// Its computed checksum.
        wanted: u32,
        /// The checksum it holds.
        found: u32,
    },
    /// A block is intact but its content is not valid.
    Corrupt(BlockNr, Corruption),
    /// A reference count would drop below zero or overflow.
    RefCount(BlockNr),
}

impl Error {
    /// The positive errno that the kernel's C implementation gives for the same fault, where it has one.
    pub fn errno(self) -> i32 {
        const EPERM: i32 = 1;
        const EIO: i32 = 5;
        const EAGAIN: i32 = 11;
        const ENOMEM: i32 = 12;
        const ENOTBLK: i32 = 15;
        const EINVAL: i32 = 22;
        const ENOSPC: i32 = 28;
        const ENODATA: i32 = 61;
        const EILSEQ: i32 = 84;
        const EUCLEAN: i32 = 117;

        match self {
            Self::NoMemory => ENOMEM,
            Self::NoSpace => ENOSPC,
            Self::NoData => ENODATA,
            Self::WouldBlock => EAGAIN,
            Self::ReadOnly => EPERM,
            Self::Invalid | Self::Unsupported | Self::RefCount(_) => EINVAL,
            Self::Io(errno) => errno,
            Self::WrongLocation { .. } => ENOTBLK,
            Self::Checksum { .. } | Self::Corrupt(..) => EILSEQ,
            // What a device gives for what is beyond its end.
            Self::OutOfBounds(_) => EIO,
            Self::Conflict(_) | Self::WrongValidator(_) => EUCLEAN,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => f.write_str("out of memory"),
            Self::NoSpace => f.write_str("no free block"),
            Self::NoData => f.write_str("no such key"),
            Self::WouldBlock => f.write_str("block is not in memory"),
            Self::ReadOnly => f.write_str("metadata is read-only"),
            Self::Invalid => f.write_str("invalid argument"),
            Self::Unsupported => f.write_str("unsupported feature flags"),
            Self::Io(errno) => write!(f, "I/O error {errno}"),
            Self::OutOfBounds(b) => write!(f, "block {b} is out of bounds"),
            Self::Conflict(b) => write!(f, "block {b} is referenced twice"),
            Self::WrongValidator(b) => write!(f, "block {b} is of another kind"),
            Self::WrongLocation { block, found } => {
                write!(f, "block {block} says it is block {found}")
            }
            Self::Checksum {
                block,
                wanted,
                found,
            } => write!(f, "block {block} has checksum {found}, wanted {wanted}"),
            Self::Corrupt(b, what) => write!(f, "block {b} is corrupt: {what:?}"),
            Self::RefCount(b) => write!(f, "reference count of block {b} is out of range"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_in_a_line_and_by_an_errno() {
        let corrupt = Error::Corrupt(7, Corruption::KeyOrder);
        let location = Error::WrongLocation { block: 7, found: 8 };
        let checksum = Error::Checksum {
            block: 7,
            wanted: 1,
            found: 2,
        };
        for (error, errno, text) in [
            (Error::NoMemory, 12, "out of memory"),
            (Error::NoSpace, 28, "no free block"),
            (Error::NoData, 61, "no such key"),
            (Error::WouldBlock, 11, "block is not in memory"),
            (Error::ReadOnly, 1, "metadata is read-only"),
            (Error::Invalid, 22, "invalid argument"),
            (Error::Unsupported, 22, "unsupported feature flags"),
            (Error::Io(6), 6, "I/O error 6"),
            (Error::OutOfBounds(7), 5, "block 7 is out of bounds"),
            (Error::Conflict(7), 117, "block 7 is referenced twice"),
            (Error::WrongValidator(7), 117, "block 7 is of another kind"),
            (location, 15, "block 7 says it is block 8"),
            (checksum, 84, "block 7 has checksum 2, wanted 1"),
            (corrupt, 84, "block 7 is corrupt: KeyOrder"),
            (
                Error::RefCount(7),
                22,
                "reference count of block 7 is out of range",
            ),
        ] {
            assert_eq!((error.errno(), error.to_string().as_str()), (errno, text));
        }
    }
}
