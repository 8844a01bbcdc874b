// SPDX-License-Identifier: GPL-2.0

//! What the blocks of a pool or of a volume are, in as many parts as a drawing has.

use persistent_data::block_manager::BlockManager;
use serde::Serialize;
use thin_metadata::{
    DeviceId,
    View, //
};

use crate::{
    census::Census,
    error::Result, //
};

/// A part of a map: adjacent blocks.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Cell {
    /// How many blocks it stands for.
    pub blocks: u64,
    /// How many of them one volume uses.
    pub exclusive: u64,
    /// How many of them several volumes use. The rest is free.
    pub shared: u64,
    /// The volume that uses the most of what is exclusive.
    pub volume: Option<u64>,
}

/// What blocks are, from the first to the last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Map {
    /// How many blocks there are.
    pub blocks: u64,
    /// How many of them one volume uses.
    pub exclusive: u64,
    /// How many of them several volumes use.
    pub shared: u64,
    /// The parts, in order.
    pub cells: Vec<Cell>,
}

impl Map {
    /// A map of free blocks, in `nr_cells` parts, or one for each block if there are fewer.
    fn new(blocks: u64, nr_cells: u32) -> Self {
        let nr_cells = u64::from(nr_cells.max(1)).min(blocks);
        let start = |i: u64| u128::from(i) * u128::from(blocks) / u128::from(nr_cells.max(1));
        let cell = |i: u64| Cell {
            // Both are at most `blocks`.
            blocks: (start(i.saturating_add(1)).saturating_sub(start(i))) as u64,
            ..Cell::default()
        };
        Self {
            blocks,
            exclusive: 0,
            shared: 0,
            cells: (0..nr_cells).map(cell).collect(),
        }
    }

    /// The index of the cell that stands for a block, of which there is one for each block below `blocks`.
    fn index(&self, block: u64) -> usize {
        let nr_cells = self.cells.len() as u128;
        let end = (u128::from(block) + 1) * nr_cells;
        usize::try_from(end.saturating_sub(1) / u128::from(self.blocks.max(1)))
            .unwrap_or(usize::MAX)
    }

    fn add_shared(&mut self, block: u64) {
        let index = self.index(block);
        if let Some(cell) = self.cells.get_mut(index) {
            cell.shared = cell.shared.saturating_add(1);
            self.shared = self.shared.saturating_add(1);
        }
    }
}

/// Exclusive blocks, one volume after the other.
struct Exclusive {
    /// For each cell, how many blocks this volume has, and how many the one that has the most.
    counts: Vec<(u64, u64)>,
}

impl Exclusive {
    fn new(map: &Map) -> Self {
        Self {
            counts: vec![(0, 0); map.cells.len()],
        }
    }

    fn add(&mut self, map: &Map, block: u64) {
        if let Some((count, _)) = self.counts.get_mut(map.index(block)) {
            *count = count.saturating_add(1);
        }
    }

    fn finish_volume(&mut self, map: &mut Map, id: DeviceId) {
        for (cell, (count, most)) in map.cells.iter_mut().zip(&mut self.counts) {
            let n = std::mem::take(count);
            cell.exclusive = cell.exclusive.saturating_add(n);
            map.exclusive = map.exclusive.saturating_add(n);
            if n > *most {
                *most = n;
                cell.volume = Some(id.into());
            }
        }
    }
}

/// The data blocks of a pool, of which there are `nr_data_blocks`, in at most `nr_cells` parts.
pub fn pool<B: BlockManager>(
    view: &View<'_, B>,
    nr_data_blocks: u64,
    nr_cells: u32,
) -> Result<Map> {
    let census = Census::take(view, nr_data_blocks)?;
    let mut map = Map::new(nr_data_blocks, nr_cells);
    census
        .shared()
        .iter()
        .for_each(|block| map.add_shared(block));
    let mut exclusive = Exclusive::new(&map);
    for device in census.devices() {
        census.for_exclusive(view, *device, |_, block| exclusive.add(&map, block))?;
        exclusive.finish_volume(&mut map, *device);
    }
    Ok(map)
}

/// The virtual blocks of a volume, in at most `nr_cells` parts: as many as its size, or if that is not known, up to the
/// last one that is mapped.
///
/// Shared is what it has in common with another volume.
pub fn volume<B: BlockManager>(
    view: &View<'_, B>,
    id: DeviceId,
    nr_virtual_blocks: Option<u64>,
    nr_data_blocks: u64,
    nr_cells: u32,
) -> Result<Map> {
    let tree = view.device_tree(id)?;
    let blocks = match nr_virtual_blocks {
        Some(blocks) => blocks,
        None => match tree.highest_key(view.bm())? {
            Some([last]) => last.saturating_add(1),
            None => 0,
        },
    };
    let census = Census::take(view, nr_data_blocks)?;
    let mut map = Map::new(blocks, nr_cells);
    let mut exclusive = Exclusive::new(&map);
    view.for_mappings(id, |block, value| {
        if block < blocks {
            match census.shared().has(value.block()) {
                true => map.add_shared(block),
                false => exclusive.add(&map, block),
            }
        }
        Ok(())
    })?;
    exclusive.finish_volume(&mut map, id);
    Ok(map)
}
