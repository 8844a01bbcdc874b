// SPDX-License-Identifier: GPL-2.0

//! A tree of mappings that loses its root: its only child takes the root's place. If somebody else has that child, too,
//! all that it refers to gets one more owner.

use std::ops::Range;

use persistent_data::memory::MemoryBm;

use super::{
    check_with_tools,
    deep::{
        children,
        deep_pool,
        depth,
        root_of, //
    },
    model::{
        id,
        Model, //
    },
    no_flush,
    reopen, //
};
use crate::Metadata;

const NR_METADATA: u64 = 2048;
const NR_DATA: u64 = 91_000;

/// Which leaf of a device stays when all others go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Keep {
    First,
    Last,
}

/// How they go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    /// All at once, by which whole children of the root go.
    Range,
    /// One by one.
    Single,
}

/// Commits, and has the tools compare everything with the model.
fn commit(md: &mut Metadata<MemoryBm>, model: &Model) {
    md.commit().unwrap();
    check_with_tools(md, model);
}

/// Removes mappings of a device.
fn remove(
    md: &mut Metadata<MemoryBm>,
    model: &mut Model,
    dev: u64,
    blocks: Range<u64>,
    keep: Keep,
    by: By,
) {
    let thin = md.open_thin(id(dev)).unwrap();
    let mappings = &model.device(dev).mappings;
    let mut single: Vec<u64> = mappings.range(blocks.clone()).map(|(b, _)| *b).collect();
    if keep == Keep::First {
        single.reverse();
    }
    match by {
        By::Range => md
            .remove_range(&thin, blocks.start, blocks.end, &mut |_| ())
            .unwrap(),
        By::Single => {
            for block in single {
                md.remove_range(&thin, block, block + 1, &mut |_| ())
                    .unwrap();
            }
        }
    }
    md.close_thin(&thin);
    model.remove(dev, blocks.start, blocks.end);
}

/// Removes all but one leaf of `dev`, and then that.
fn shrink(md: &mut Metadata<MemoryBm>, model: &mut Model, dev: u64, keep: Keep, by: By) {
    let root = children(md, root_of(md, dev));
    let [first, last] = [root.first(), root.last()].map(|child| child.expect("a child").1);
    let lost = match keep {
        Keep::First => children(md, first)[1].0..u64::MAX,
        Keep::Last => 0..children(md, last).last().expect("a leaf").0,
    };
    remove(md, model, dev, lost, keep, by);
    // A leaf that is the only child takes the root's place when something is asked for.
    let left = depth(md, root_of(md, dev));
    assert!(left <= 2, "{left}");
    assert!(model.device(dev).mapped_blocks > 80);
    commit(md, model);
    remove(md, model, dev, 0..u64::MAX, keep, by);
    commit(md, model);
}

/// Deletes the devices, after which all blocks are free.
fn delete_all(md: &mut Metadata<MemoryBm>, model: &mut Model) {
    let devices: Vec<u64> = model.pool.devices.keys().copied().collect();
    for dev in devices {
        md.delete_thin(id(dev), &mut |_| ()).unwrap();
        model.pool.devices.remove(&dev);
        commit(md, model);
    }
    assert_eq!(md.free_data_blocks(), Ok(NR_DATA));
}

#[test]
fn a_snapshot_keeps_what_the_root_took_over() {
    let (base, base_model) = deep_pool(NR_METADATA, NR_DATA);
    for (dev, keep, by) in [
        (1, Keep::First, By::Range),
        (1, Keep::Last, By::Range),
        (2, Keep::First, By::Range),
        (2, Keep::Last, By::Range),
        (1, Keep::First, By::Single),
        (2, Keep::Last, By::Single),
    ] {
        let (mut md, mut model) = (reopen(&base), base_model.clone());
        md.create_snap(id(2), id(1)).unwrap();
        model.snap(2, 1);
        commit(&mut md, &model);
        shrink(&mut md, &mut model, dev, keep, by);
        delete_all(&mut md, &mut model);
    }
}

#[test]
fn a_metadata_snapshot_keeps_what_the_root_took_over() {
    let (base, base_model) = deep_pool(NR_METADATA, NR_DATA);
    for keep in [Keep::First, Keep::Last] {
        let (mut md, mut model) = (reopen(&base), base_model.clone());
        md.reserve_metadata_snap(no_flush).unwrap();
        model.held = model.pool.held();
        commit(&mut md, &model);
        shrink(&mut md, &mut model, 1, keep, By::Range);
        md.release_metadata_snap(&mut |_| ()).unwrap();
        model.held = None;
        commit(&mut md, &model);
        delete_all(&mut md, &mut model);
    }
}
