// SPDX-License-Identifier: GPL-2.0

//! Blocks of thin devices whose mapping is about to change, and the bios that wait for it.
//!
//! A cell covers a range of virtual blocks from the moment the worker decides to change their mappings
//! until the change is in the metadata. Bios for these blocks that reach the worker wait in the cell.
//! Cells of a device never overlap. Only the pool's worker uses them, so there is no lock.

use core::ops::Range;

use kernel::{
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
};
use thin_metadata::{
    DeviceId,
    VirtualBlock, //
};

use crate::{
    per_bio::{
        ThinBio,
        ThinBios, //
    },
    spare::Spare, //
};

/// A device and the last block of a cell: the first cell at or after a block is the one that may cover it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    device: u64,
    last: VirtualBlock,
}

struct Cell {
    begin: VirtualBlock,
    waiting: ThinBios,
}

/// Names a cell; whoever holds it owes a [`Cells::release`].
#[must_use = "bios wait in the cell until it is released"]
pub(crate) struct CellId(Key);

/// All cells of a pool.
pub(crate) struct Cells {
    cells: RBTree<Key, Cell>,
    rooms: Spare<RBTreeNodeReservation<Key, Cell>>,
}

impl Cells {
    /// No cells; there can be `least` also where there is no memory. Memory of up to `kept` is kept once it was needed.
    pub(crate) fn new(least: usize, kept: usize) -> Result<Self> {
        Ok(Self {
            cells: RBTree::new(),
            rooms: Spare::new(least, kept, RBTreeNodeReservation::new)?,
        })
    }

    /// Makes `bio` wait if a cell covers any of `blocks`, gives it back otherwise.
    pub(crate) fn wait(
        &mut self,
        device: DeviceId,
        blocks: &Range<VirtualBlock>,
        bio: ThinBio,
    ) -> Option<ThinBio> {
        let device = u64::from(device);
        let from = Key {
            device,
            last: blocks.start,
        };
        let Some(mut cursor) = self.cells.cursor_lower_bound_mut(&from) else {
            return Some(bio);
        };
        let (key, cell) = cursor.current_mut();
        if key.device != device || cell.begin >= blocks.end {
            return Some(bio);
        }
        cell.waiting.push(bio);
        None
    }

    /// Makes a cell of `blocks`, which must not be empty and which no cell may cover.
    ///
    /// Fails with [`ENOMEM`], or [`EBUSY`] if a cell ends at the same block.
    pub(crate) fn lock(
        &mut self,
        device: DeviceId,
        blocks: &Range<VirtualBlock>,
    ) -> Result<CellId> {
        let key = Key {
            device: u64::from(device),
            last: blocks.end.checked_sub(1).ok_or(EINVAL)?,
        };
        if self.cells.get(&key).is_some() {
            return Err(EBUSY);
        }
        let cell = Cell {
            begin: blocks.start,
            waiting: ThinBios::new(),
        };
        let room = self.rooms.take().ok_or(ENOMEM)?;
        self.cells.insert(room.into_node(key, cell));
        Ok(CellId(key))
    }

    /// Ends a cell and gives the bios that waited, in the order in which they came.
    pub(crate) fn release(&mut self, CellId(key): CellId) -> ThinBios {
        let Some(mut cell) = self.cells.find_mut(&key) else {
            return ThinBios::new();
        };
        let waiting = core::mem::take(&mut cell.get_mut().waiting);
        self.rooms.give(cell.remove_node().into_reservation());
        waiting
    }
}
