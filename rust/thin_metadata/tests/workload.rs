// SPDX-License-Identifier: GPL-2.0

//! Changes of all kinds, to be interrupted at any point.

use persistent_data::memory::MemoryBm;

use super::{
    model::{
        id,
        Model, //
    },
    no_flush,
    pool,
    provision, //
};
use crate::{
    Metadata,
    Result, //
};

/// The transaction id of a pool that [`change`] has changed to its end.
const CHANGED: u64 = 9;

/// Whether [`change`] has come to its end in this pool.
pub(super) fn is_changed(md: &Metadata<MemoryBm>) -> bool {
    md.transaction_id() == Ok(CHANGED)
}

/// A committed pool with a volume, two snapshots and a metadata snapshot.
pub(super) fn base() -> (Metadata<MemoryBm>, Model) {
    let mut md = pool(512, 3000);
    let mut model = Model::new(3000);
    let result = (|| {
        md.create_thin(id(1))?;
        model.create(1);
        insert(&mut md, &mut model, 1, 0..400)?;
        md.create_snap(id(2), id(1))?;
        model.snap(2, 1);
        md.create_snap(id(3), id(2))?;
        model.snap(3, 2);
        insert(&mut md, &mut model, 2, 100..150)?;
        md.reserve_metadata_snap(no_flush)?;
        model.held = model.pool.held();
        insert(&mut md, &mut model, 3, 300..320)?;
        md.commit()
    })();
    result.expect("nothing fails here");
    (md, model)
}

/// Maps new data blocks.
pub(super) fn insert(
    md: &mut Metadata<MemoryBm>,
    model: &mut Model,
    dev: u64,
    blocks: std::ops::Range<u64>,
) -> Result {
    let thin = md.open_thin(id(dev))?;
    let mut result = Ok(());
    for virtual_block in blocks {
        match provision(md, &thin, virtual_block) {
            Ok(block) => model.insert(dev, virtual_block, block),
            Err(e) => {
                result = Err(e);
                break;
            }
        }
    }
    md.close_thin(&thin);
    result
}

/// As [`insert`], all at once.
pub(super) fn insert_together(
    md: &mut Metadata<MemoryBm>,
    model: &mut Model,
    dev: u64,
    blocks: std::ops::Range<u64>,
) -> Result {
    let mut data = Vec::new();
    let n = blocks.end - blocks.start;
    let taken = md.alloc_data_blocks(n as u32, &mut |_| true, &mut |run| data.extend(run))?;
    assert_eq!(u64::from(taken), n);
    let pairs: Vec<_> = blocks.zip(data).collect();
    let thin = md.open_thin(id(dev))?;
    let result = md.insert_blocks(&thin, &pairs, &mut |_| ());
    md.close_thin(&thin);
    result?;
    for (virtual_block, block) in pairs {
        model.insert(dev, virtual_block, block);
    }
    Ok(())
}

pub(super) fn remove(
    md: &mut Metadata<MemoryBm>,
    model: &mut Model,
    dev: u64,
    begin: u64,
    end: u64,
) -> Result {
    let thin = md.open_thin(id(dev))?;
    let result = md.remove_range(&thin, begin, end, &mut |_| ());
    md.close_thin(&thin);
    result?;
    model.remove(dev, begin, end);
    Ok(())
}

/// Changes the pool that [`base`] made; nothing is committed.
pub(super) fn change(md: &mut Metadata<MemoryBm>, model: &mut Model) -> Result {
    md.create_thin(id(4))?;
    model.create(4);
    insert(md, model, 4, 1000..1040)?;
    insert_together(md, model, 4, 1020..1300)?;
    insert(md, model, 1, 380..420)?;
    insert_together(md, model, 1, 200..250)?;
    remove(md, model, 2, 50, 350)?;
    md.create_snap(id(5), id(2))?;
    model.snap(5, 2);
    insert(md, model, 5, 0..10)?;
    md.delete_thin(id(3), &mut |_| ())?;
    model.pool.devices.remove(&3);
    md.release_metadata_snap(&mut |_| ())?;
    model.held = None;
    md.resize_data(3100)?;
    model.pool.nr_data = 3100;
    insert(md, model, 2, 200..210)?;
    md.set_transaction_id(0, CHANGED)?;
    model.pool.transaction_id = CHANGED;
    Ok(())
}
