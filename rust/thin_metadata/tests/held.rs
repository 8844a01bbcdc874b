// SPDX-License-Identifier: GPL-2.0

//! How many blocks a change holds at a time.

use persistent_data::{
    btree::MAX_DEPTH,
    memory::MemoryBm, //
};

use super::{
    deep::{
        deep_pool,
        depth,
        root_of,
        DISTANCE,
        NR_MAPPED, //
    },
    model::id,
    no_flush,
    provision, //
};
use crate::{
    format::{
        Superblock,
        MAX_DEVICE_ID,
        METADATA_MAX_BLOCKS, //
    },
    Metadata,
    MAX_HELD, //
};

/// How many data blocks have more than one owner. Every other count is in the tree of counts: more than the leaves of
/// one root hold, which are 252, with 336 in each.
const NR_COUNTED: u64 = 180_000;

/// The depths of trees: how many nodes are on the way from the root to a leaf.
#[derive(Clone, Copy, Debug)]
struct Depths {
    /// The upper level of the mapping tree.
    upper: usize,
    /// A device's mappings.
    mappings: usize,
    /// The tree of counts of the data space map.
    data: usize,
    /// The tree of counts of the metadata space map.
    metadata: usize,
}

/// How many blocks are held at a time at most.
fn bound(depths: Depths) -> usize {
    let Depths {
        upper,
        mappings,
        data,
        metadata,
    } = depths;
    // To remove from a node takes that, its parent, a child, and the child's neighbours.
    let removal = |depth: usize| depth.min(3) + 2;
    // The last neighbour is just being copied: its original, and a bitmap where a free block is looked for.
    let metadata = (metadata + 2).max(removal(metadata) + 1);
    let data = (data + 2).max(removal(data));
    let mappings = (upper + mappings).max(1 + removal(mappings));
    mappings + data + metadata
}

/// The deepest tree of so many entries and nodes, all nodes of which are a third full.
fn deepest(nr_entries: u64, least_in_leaf: u64) -> usize {
    const LEAST_CHILDREN: u64 = 252 / 3;
    let (mut depth, mut leaves) = (2, 2);
    while leaves * LEAST_CHILDREN * least_in_leaf <= nr_entries
        && leaves * LEAST_CHILDREN <= METADATA_MAX_BLOCKS
    {
        depth += 1;
        leaves *= LEAST_CHILDREN;
    }
    depth
}

#[test]
fn the_bound_is_that_of_the_deepest_trees() {
    let depths = Depths {
        upper: deepest(MAX_DEVICE_ID + 1, 252 / 3),
        mappings: deepest(u64::MAX, 252 / 3),
        data: deepest(u64::MAX, 336 / 3),
        metadata: deepest(METADATA_MAX_BLOCKS, 336 / 3),
    };
    assert_eq!(bound(depths), 22, "{depths:?}");
    // Such trees are accepted that nobody would have made but to do harm.
    let depths = Depths {
        upper: MAX_DEPTH,
        mappings: MAX_DEPTH,
        data: MAX_DEPTH,
        metadata: MAX_DEPTH,
    };
    assert_eq!(bound(depths), MAX_HELD as usize);
}

/// The depths in a pool that was just committed.
fn depths(md: &Metadata<MemoryBm>) -> Depths {
    let superblock = Superblock::read(md.bm(), 0).expect("a superblock");
    let data = superblock.data_sm_root().expect("a root").ref_count_root;
    let metadata = superblock
        .metadata_sm_root()
        .expect("a root")
        .ref_count_root;
    Depths {
        upper: 1,
        mappings: depth(md, root_of(md, 1)),
        data: depth(md, data.get()),
        metadata: depth(md, metadata.get()),
    }
}

/// Numbers that look random.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 20
}

#[test]
fn no_change_holds_more_than_the_bound() {
    let (mut md, _) = deep_pool(12_000, 200_000);
    // The counts of every other data block outgrow its bitmap now, those of the others will with the next snapshots.
    md.inc_data_range(0, NR_COUNTED).unwrap();
    for block in (0..NR_COUNTED).step_by(2) {
        md.inc_data_range(block, block + 1).unwrap();
        if block < NR_MAPPED {
            continue;
        }
        md.inc_data_range(block, block + 1).unwrap();
    }
    md.commit().unwrap();
    md.bm().take_most_held();

    // Several trees share most of their nodes, so that counts of metadata blocks outgrow their bitmap, too.
    for snap in 2..8 {
        md.create_snap(id(snap), id(1)).unwrap();
        let thin = md.open_thin(id(snap)).unwrap();
        for n in 0..8 {
            let block = n * NR_MAPPED / 8 * DISTANCE;
            provision(&mut md, &thin, block + snap).unwrap();
        }
        md.close_thin(&thin);
        md.commit().unwrap();
    }
    let before = depths(&md);
    assert!(before.data >= 3 && before.metadata >= 2, "{before:?}");

    let thin = md.open_thin(id(1)).unwrap();
    let mut most = 0;
    for n in 0..600 {
        let place = mix(n) % NR_MAPPED * DISTANCE;
        if n % 3 == 0 {
            md.remove_range(&thin, place, place + 90 * DISTANCE, &mut |_| ())
                .unwrap();
        } else {
            provision(&mut md, &thin, place + 1 + n % 2).unwrap();
        }
        if n % 50 == 0 {
            md.commit().unwrap();
        }
        most = most.max(md.bm().take_most_held());
    }
    md.close_thin(&thin);
    md.reserve_metadata_snap(no_flush).unwrap();
    md.commit().unwrap();
    for snap in 2..5 {
        md.delete_thin(id(snap), &mut |_| ()).unwrap();
    }
    md.commit().unwrap();
    md.release_metadata_snap(&mut |_| ()).unwrap();
    for snap in 5..8 {
        md.delete_thin(id(snap), &mut |_| ()).unwrap();
    }
    most = most.max(md.bm().take_most_held());
    md.commit().unwrap();

    // Trees may have got deeper by one than they were.
    let Depths {
        upper,
        mappings,
        data,
        metadata,
    } = before;
    let deeper = Depths {
        upper,
        mappings: mappings + 1,
        data: data + 1,
        metadata: metadata + 1,
    };
    assert!(most <= bound(deeper), "{most}, {before:?}");
    // It means something: a change of one tree was met during that of another, as no tree alone takes so many.
    let alone = upper + deeper.mappings.min(3) + 2;
    assert!(most > alone, "{most}, {before:?}");
}
