// SPDX-License-Identifier: GPL-2.0

//! How many data blocks volumes use, alone and together.

use std::io::Write;

use persistent_data::block_manager::BlockManager;
use serde::Serialize;
use thin_metadata::View;

use crate::{
    census::Census,
    error::{
        Error,
        Result, //
    },
    naming::device_id,
    relations::{
        relations,
        Relation, //
    },
    session::Session,
};

/// What is known of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Volume {
    /// Its id.
    pub id: u64,
    /// How many blocks it maps.
    pub mapped: u64,
    /// How many of them no other volume has.
    pub exclusive: u64,
    /// How many of them another volume has, too.
    pub shared: u64,
    /// The pool's transaction id when it was created.
    pub transaction_id: u64,
    /// The pool's time when it was created.
    pub creation_time: u32,
    /// The pool's time when it was last part of a snapshot.
    pub snapshotted_time: u32,
    /// What it is a snapshot of.
    pub relation: Relation,
}

/// How many data blocks a pool's volumes use.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Usage {
    /// The size of a data block in bytes.
    pub block_size: u64,
    /// How many data blocks there are.
    pub data_blocks: u64,
    /// How many of them a volume uses.
    pub used: u64,
    /// How many of them several volumes use.
    pub shared: u64,
    /// The volumes, in the order of their ids.
    pub volumes: Vec<Volume>,
}

/// Counts what the volumes of `view` use of `nr_data_blocks`.
pub fn usage<B: BlockManager>(view: &View<'_, B>, nr_data_blocks: u64) -> Result<Usage> {
    let census = Census::take(view, nr_data_blocks)?;
    let mut details = Vec::new();
    view.for_devices(|id, device| {
        details.push((id, device));
        Ok(())
    })?;
    let relations = relations(view, &details)?;
    let mut volumes = Vec::new();
    for ((id, device), relation) in details.iter().zip(relations) {
        let mut exclusive = 0u64;
        census.for_exclusive(view, *id, |_, _| exclusive = exclusive.saturating_add(1))?;
        let mapped = device.mapped_blocks.get();
        let shared = mapped
            .checked_sub(exclusive)
            .ok_or(thin_metadata::Error::MappedBlocks(*id))?;
        volumes.push(Volume {
            id: (*id).into(),
            mapped,
            exclusive,
            shared,
            transaction_id: device.transaction_id.get(),
            creation_time: device.creation_time.get(),
            snapshotted_time: device.snapshotted_time.get(),
            relation,
        });
    }
    Ok(Usage {
        block_size: u64::from(view.superblock().data_block_size.get())
            * thin_metadata::format::SECTOR_SIZE,
        data_blocks: census.nr_data_blocks(),
        used: census.used().count(),
        shared: census.shared().count(),
        volumes,
    })
}

/// How many blocks of volume `id` no other volume has.
pub fn exclusive(session: &Session, id: u32) -> Result<u64> {
    let snap = session.metadata_snap()?;
    // A pool may grow.
    let blocks = session.pool.status(&session.dm)?.data_blocks;
    let view = snap.view()?;
    let census = Census::take(&view, blocks)?;
    let mut exclusive = 0u64;
    census.for_exclusive(&view, device_id(id)?, |_, _| {
        exclusive = exclusive.saturating_add(1);
    })?;
    snap.release()?;
    Ok(exclusive)
}

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0u32;
    while n >> (10 * unit) >= 1024 && unit < 6 {
        unit += 1;
    }
    let name = units.get(unit as usize).copied().unwrap_or_default();
    if unit == 0 {
        return format!("{n} {name}");
    }
    // A float is good for the few digits that are shown.
    format!("{:.1} {name}", n as f64 / (1u64 << (10 * unit)) as f64)
}

impl Usage {
    /// Writes a table.
    pub fn write_text(&self, out: &mut dyn Write) -> Result {
        self.table(out).map_err(Error::io("cannot write"))
    }

    fn table(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let size = |blocks: u64| bytes(blocks.saturating_mul(self.block_size));
        writeln!(
            out,
            "{:>8} {:>12} {:>12} {:>12}  SNAPSHOT OF",
            "VOLUME", "MAPPED", "EXCLUSIVE", "SHARED"
        )?;
        for v in &self.volumes {
            writeln!(
                out,
                "{:>8} {:>12} {:>12} {:>12}  {}",
                v.id,
                size(v.mapped),
                size(v.exclusive),
                size(v.shared),
                v.relation
            )?;
        }
        writeln!(
            out,
            "{} of {} in use, {} of it by several volumes",
            size(self.used),
            size(self.data_blocks),
            size(self.shared)
        )
    }
}
