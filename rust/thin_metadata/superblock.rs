// SPDX-License-Identifier: GPL-2.0

//! Reading, checking and writing the superblock.

use zerocopy::{
    FromBytes,
    IntoBytes, //
};

use persistent_data::{
    block::{
        check_checksum,
        check_location,
        seal_checksum,
        BlockData,
        BlockNr,
        Validator, //
    },
    block_manager::BlockManager,
    error::Corruption,
    space_map::SmRoot,
};

use crate::{
    error::{
        Error,
        Result, //
    },
    format::{
        Superblock,
        MAGIC,
        METADATA_BLOCK_SECTORS,
        SPACE_MAP_ROOT_SIZE,
        SUPERBLOCK_CSUM_XOR,
        SUPERBLOCK_LOCATION,
        VERSION, //
    },
};

/// Checks and seals superblocks, also those of metadata snapshots.
pub static VALIDATOR: Validator = Validator {
    name: "superblock",
    check,
    prepare,
};

fn check(data: &BlockData, block: BlockNr) -> persistent_data::Result {
    let superblock = Superblock::of(data)?;
    check_location(block, superblock.blocknr.get())?;
    if superblock.magic.get() != MAGIC {
        return Err(persistent_data::Error::Corrupt(block, Corruption::Magic));
    }
    check_checksum(data, block, SUPERBLOCK_CSUM_XOR)
}

fn prepare(data: &mut BlockData, block: BlockNr) {
    if let Ok(superblock) = Superblock::of_mut(data) {
        superblock.blocknr = block.into();
    }
    seal_checksum(data, SUPERBLOCK_CSUM_XOR);
}

/// Whether the superblock's block holds nothing but zeroes: the device was never formatted.
pub fn is_unformatted<B: BlockManager>(bm: &B) -> Result<bool> {
    let data = bm.read_raw(SUPERBLOCK_LOCATION)?;
    Ok(data.iter().all(|&byte| byte == 0))
}

impl Superblock {
    /// The superblock in a block.
    pub fn of(data: &BlockData) -> persistent_data::Result<&Self> {
        Self::ref_from_prefix(data)
            .map(|(superblock, _)| superblock)
            .map_err(|_| persistent_data::Error::Invalid)
    }

    /// The superblock in a block, for changing.
    pub fn of_mut(data: &mut BlockData) -> persistent_data::Result<&mut Self> {
        Self::mut_from_prefix(data)
            .map(|(superblock, _)| superblock)
            .map_err(|_| persistent_data::Error::Invalid)
    }

    /// Reads the superblock at `location`: [`SUPERBLOCK_LOCATION`], or where a metadata snapshot's is.
    ///
    /// Location, magic number and checksum are checked; see [`check_format`](Self::check_format) for more.
    pub fn read<B: BlockManager>(bm: &B, location: BlockNr) -> Result<Self> {
        let data = bm.read(location, &VALIDATOR)?;
        Ok(*Self::of(&data)?)
    }

    /// Checks that this library can read what the superblock describes, and unless `read_only`, write it.
    pub fn check_format(&self, read_only: bool) -> Result {
        match self.incompat_flags.get() {
            0 => {}
            flags => return Err(Error::IncompatFeatures(flags)),
        }
        match self.compat_ro_flags.get() {
            0 => {}
            _ if read_only => {}
            flags => return Err(Error::CompatRoFeatures(flags)),
        }
        match self.version.get() {
            1..=VERSION => {}
            version => return Err(Error::Version(version)),
        }
        match self.metadata_block_size.get() {
            METADATA_BLOCK_SECTORS => Ok(()),
            size => Err(Error::MetadataBlockSize(size)),
        }
    }

    /// Checks that the roots are below `nr_blocks`, the size of the metadata space map, and not at the
    /// superblock's own place.
    pub fn check_roots(&self, nr_blocks: BlockNr) -> Result {
        let valid = 1..nr_blocks;
        let trees = [
            ("mapping tree", self.data_mapping_root.get()),
            ("details tree", self.device_details_root.get()),
        ];
        for (what, block) in trees {
            if !valid.contains(&block) {
                return Err(Error::BadRoot { what, block });
            }
        }
        let block = self.held_root.get();
        if block != 0 && !valid.contains(&block) {
            return Err(Error::BadRoot {
                what: "metadata snapshot",
                block,
            });
        }
        Ok(())
    }

    /// Checks that no root of a space map is at the superblock's own place. What else can be wrong with them is found
    /// when they are read.
    pub fn check_space_map_roots(&self) -> Result {
        let (metadata, data) = (self.metadata_sm_root()?, self.data_sm_root()?);
        let roots = [
            ("index of the metadata space map", metadata.bitmap_root),
            ("tree of metadata counts", metadata.ref_count_root),
            ("index of the data space map", data.bitmap_root),
            ("tree of data counts", data.ref_count_root),
        ];
        match roots
            .iter()
            .find(|(_, block)| block.get() == SUPERBLOCK_LOCATION)
        {
            Some((what, block)) => Err(Error::BadRoot {
                what,
                block: block.get(),
            }),
            None => Ok(()),
        }
    }

    /// The root of the data space map.
    pub fn data_sm_root(&self) -> Result<SmRoot> {
        sm_root(&self.data_space_map_root)
    }

    /// The root of the metadata space map.
    pub fn metadata_sm_root(&self) -> Result<SmRoot> {
        sm_root(&self.metadata_space_map_root)
    }
}

fn sm_root(bytes: &[u8; SPACE_MAP_ROOT_SIZE]) -> Result<SmRoot> {
    SmRoot::read_from_prefix(bytes)
        .map(|(root, _)| root)
        .map_err(|_| persistent_data::Error::Invalid.into())
}

/// A space map's root, as the superblock has it.
pub(crate) fn sm_root_bytes(root: &SmRoot) -> [u8; SPACE_MAP_ROOT_SIZE] {
    let mut bytes = [0; SPACE_MAP_ROOT_SIZE];
    for (to, from) in bytes.iter_mut().zip(root.as_bytes()) {
        *to = *from;
    }
    bytes
}
