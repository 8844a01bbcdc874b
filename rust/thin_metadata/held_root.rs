// SPDX-License-Identifier: GPL-2.0

//! The metadata snapshot: the state of a commit, held for programs that read the metadata device.

use persistent_data::{
    block::BlockNr,
    block_manager::{
        BlockManager,
        Guard, //
    },
    btree::Plain,
    transaction::Transaction, //
};

use crate::{
    data_blocks::{
        DataBlocks,
        Freed, //
    },
    error::{
        Error,
        Result, //
    },
    format::{
        DetailsTree,
        MappingTree,
        Superblock,
        SPACE_MAP_ROOT_SIZE,
        SUPERBLOCK_LOCATION, //
    },
    metadata::Metadata,
    superblock, //
};

impl<B: BlockManager> Metadata<B> {
    /// Where the superblock of the metadata snapshot is; `None` if there is none.
    pub fn metadata_snap(&self) -> Result<Option<BlockNr>> {
        self.check_not_failed()?;
        Ok(match self.held_root {
            0 => None,
            block => Some(block),
        })
    }

    /// Commits, with `flush_data` as in [`commit_with`](Self::commit_with), and then takes a metadata
    /// snapshot. It becomes permanent by the next commit.
    ///
    /// The snapshot is a copy of the superblock with the roots of the space maps zeroed, which holds a
    /// reference to the roots of both trees. Nothing of it is changed until it is released.
    ///
    /// Gives [`Error::SnapHeld`] if there is one already.
    pub fn reserve_metadata_snap(&mut self, flush_data: impl FnOnce() -> Result) -> Result {
        self.check_change()?;
        if self.held_root != 0 {
            return Err(Error::SnapHeld(self.held_root));
        }
        self.commit_with(flush_data)?;
        let committed = Superblock::read(&self.bm, SUPERBLOCK_LOCATION)?;

        self.change(|md| {
            let tx = &mut md.tm.tx(&md.bm);
            let mut copy = tx.new_block(&superblock::VALIDATOR)?;
            let held_root = copy.location();
            *Superblock::of_mut(&mut copy)? = Superblock {
                blocknr: held_root.into(),
                data_space_map_root: [0; SPACE_MAP_ROOT_SIZE],
                metadata_space_map_root: [0; SPACE_MAP_ROOT_SIZE],
                ..committed
            };
            drop(copy);
            for root in [
                committed.data_mapping_root.get(),
                committed.device_details_root.get(),
            ] {
                // Committed roots are those that this library wrote, or has checked.
                tx.inc(root..root.saturating_add(1))?;
            }
            md.held_root = held_root;
            Ok(())
        })
    }

    /// Releases the metadata snapshot. `freed` is told of the data blocks that nothing refers to any more, all of
    /// which count as [`maybe_shared`](Freed::maybe_shared).
    ///
    /// Gives [`Error::NoSnap`] if there is none.
    pub fn release_metadata_snap(&mut self, freed: &mut dyn FnMut(Freed)) -> Result {
        self.check_change()?;
        if self.held_root == 0 {
            return Err(Error::NoSnap);
        }
        let held = Superblock::read(&self.bm, self.held_root)?;
        held.check_roots(self.tm.nr_blocks())?;

        self.change(|md| {
            let tx = &mut md.tm.tx(&md.bm);
            let mappings = MappingTree::from_root(held.data_mapping_root.get());
            let data_blocks = &mut DataBlocks::telling(&mut md.data_sm, freed, u32::MAX);
            mappings.delete(tx, data_blocks)?;
            data_blocks.finish(tx)?;
            let details = DetailsTree::from_root(held.device_details_root.get());
            details.delete(tx, &mut Plain::new())?;
            tx.dec(md.held_root..md.held_root.saturating_add(1))?;
            md.held_root = 0;
            md.released = true;
            Ok(())
        })
    }
}
