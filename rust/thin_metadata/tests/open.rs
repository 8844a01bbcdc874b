// SPDX-License-Identifier: GPL-2.0

//! Superblocks that are not as they should be.

use persistent_data::{
    error::Corruption,
    memory::MemoryBm, //
};

use super::{
    errno,
    model::id,
    no_flush,
    pool,
    tools,
    workload,
    PARAMS,
    REOPEN, //
};
use crate::{
    format::{
        Superblock,
        METADATA_MAX_BLOCKS, //
    },
    superblock::VALIDATOR,
    Error,
    Metadata,
    OpenParams,
    View, //
};

/// A device whose superblock `f` has changed, and sealed again.
fn resealed(f: impl FnOnce(&mut Superblock)) -> MemoryBm {
    let md = pool(64, 10);
    let bm = md.bm().crash();
    bm.tamper(0, |data| {
        f(Superblock::of_mut(data).expect("a block"));
        (VALIDATOR.prepare)(data, 0);
    });
    bm
}

fn open(bm: MemoryBm) -> Result<(), Error> {
    Metadata::open(bm, REOPEN).map(drop)
}

#[test]
fn zeroes_are_formatted_only_with_leave() {
    let bm = MemoryBm::new(64);
    assert_eq!(open(bm), Err(Error::Unformatted));
    assert_eq!(Error::Unformatted.errno(), 1);
    assert!(Metadata::open(MemoryBm::new(64), PARAMS).is_ok());
}

#[test]
fn what_is_no_superblock_is_never_formatted() {
    for offset in [0, 4, 8, 511, 512, 4095] {
        let bm = MemoryBm::new(64);
        bm.tamper(0, |data| data[offset] = 1);
        assert!(Metadata::open(bm, PARAMS).is_err());
    }
}

#[test]
fn the_location_comes_first() {
    let bm = resealed(|_| {});
    bm.tamper(0, |data| data[8] = 1);
    let wanted = persistent_data::Error::WrongLocation { block: 0, found: 1 };
    assert_eq!(open(bm), Err(Error::Library(wanted)));
    assert_eq!(wanted.errno(), 15);
}

#[test]
fn then_the_magic_number() {
    let bm = resealed(|superblock| superblock.magic = 1.into());
    let wanted = persistent_data::Error::Corrupt(0, Corruption::Magic);
    assert_eq!(open(bm), Err(Error::Library(wanted)));
    assert_eq!(wanted.errno(), 84);
}

#[test]
fn then_the_checksum_of_the_whole_block() {
    for offset in [0, 3, 4, 48, 363, 364, 4095] {
        let bm = resealed(|_| {});
        bm.tamper(0, |data| data[offset] ^= 0x10);
        let result = open(bm);
        assert!(
            matches!(
                result,
                Err(Error::Library(persistent_data::Error::Checksum {
                    block: 0,
                    ..
                }))
            ),
            "{result:?}"
        );
        assert_eq!(errno(result), 84);
    }
}

#[test]
fn then_the_data_block_size() {
    let params = OpenParams {
        data_block_size: 256,
        ..REOPEN
    };
    let result = Metadata::open(resealed(|s| s.incompat_flags = 1.into()), params).map(drop);
    let wanted = Error::DataBlockSize {
        found: 128,
        wanted: 256,
    };
    assert_eq!(result, Err(wanted));
    assert_eq!(wanted.errno(), 22);
}

#[test]
fn then_features() {
    let both = |s: &mut Superblock| {
        s.incompat_flags = 4.into();
        s.compat_ro_flags = 2.into();
    };
    assert_eq!(open(resealed(both)), Err(Error::IncompatFeatures(4)));
    let ro = |s: &mut Superblock| s.compat_ro_flags = 2.into();
    assert_eq!(open(resealed(ro)), Err(Error::CompatRoFeatures(2)));
    assert_eq!(Error::CompatRoFeatures(2).errno(), 22);

    let read_only = OpenParams {
        read_only: true,
        ..REOPEN
    };
    assert!(Metadata::open(resealed(ro), read_only).is_ok());
    assert!(open(resealed(|s| s.compat_flags = 7.into())).is_ok());
}

#[test]
fn then_what_else_is_in_it() {
    type Change = fn(&mut Superblock);
    let cases: [(Change, Error); 6] = [
        (|s| s.version = 3.into(), Error::Version(3)),
        (|s| s.version = 0.into(), Error::Version(0)),
        (
            |s| s.metadata_block_size = 16.into(),
            Error::MetadataBlockSize(16),
        ),
        (
            |s| s.data_mapping_root = 0.into(),
            Error::BadRoot {
                what: "mapping tree",
                block: 0,
            },
        ),
        (
            |s| s.device_details_root = 64.into(),
            Error::BadRoot {
                what: "details tree",
                block: 64,
            },
        ),
        (
            |s| s.held_root = u64::MAX.into(),
            Error::BadRoot {
                what: "metadata snapshot",
                block: u64::MAX,
            },
        ),
    ];
    for (f, wanted) in cases {
        assert_eq!(open(resealed(f)), Err(wanted));
    }
    assert_eq!(
        open(resealed(|s| s.time = (1 << 24).into())),
        Err(Error::Library(persistent_data::Error::Corrupt(
            0,
            Corruption::SuperblockField
        )))
    );
    assert!(open(resealed(|s| s.version = 1.into())).is_ok());
}

#[test]
fn no_root_of_a_space_map_is_the_superblock() {
    type Change = fn(&mut Superblock);
    let cases: [(Change, &str); 4] = [
        (
            |s| s.metadata_space_map_root[16..24].fill(0),
            "index of the metadata space map",
        ),
        (
            |s| s.metadata_space_map_root[24..32].fill(0),
            "tree of metadata counts",
        ),
        (
            |s| s.data_space_map_root[16..24].fill(0),
            "index of the data space map",
        ),
        (
            |s| s.data_space_map_root[24..32].fill(0),
            "tree of data counts",
        ),
    ];
    for (f, what) in cases {
        let bm = resealed(f);
        assert!(tools::check(&bm.image()).is_err());
        assert_eq!(open(bm), Err(Error::BadRoot { what, block: 0 }));
    }
}

/// A pool with a device, with a bitmap that says that the superblock's own block is free. Nothing else is wrong.
fn pool_whose_superblock_is_free() -> MemoryBm {
    let mut md = pool(64, 10);
    md.create_thin(id(1)).unwrap();
    md.commit().unwrap();
    let bm = md.bm().crash();
    let superblock = Superblock::read(&bm, 0).expect("a superblock");
    let index = superblock.metadata_sm_root().expect("a root").bitmap_root;
    let image = bm.image();
    let entry = index.get() as usize * 4096 + 16;
    let bitmap = u64::from_le_bytes(image[entry..entry + 8].try_into().expect("eight bytes"));
    bm.tamper(bitmap, |data| {
        assert_eq!(data[16] & 3, 2, "its count is one");
        data[16] &= !3;
        // With the checksum of a bitmap.
        persistent_data::block::seal_checksum(data, 240_779);
    });
    bm
}

#[test]
fn a_superblock_that_is_free_is_refused() {
    let bm = pool_whose_superblock_is_free();
    let complaint = tools::check(&bm.image()).expect_err("thin_check refuses it");
    assert!(complaint.contains("space map"), "{complaint}");
    let wanted = persistent_data::Error::Corrupt(0, Corruption::SuperblockFree);
    assert_eq!(wanted.to_string(), "block 0 is corrupt: SuperblockFree");
    assert_eq!(open(bm), Err(Error::Library(wanted)));
}

#[test]
fn to_see_that_the_superblock_is_in_use_takes_one_block() {
    let reads = |nr_blocks: u64| {
        let mut md = pool(nr_blocks, 10);
        md.create_thin(id(1)).unwrap();
        md.commit().unwrap();
        let md = super::reopen(&md);
        md.bm().counts().reads
    };
    let few = reads(64);
    assert_eq!(reads(64 * 16320), few);
}

#[test]
fn space_maps_that_do_not_add_up_are_errors() {
    for offset in 0..32 {
        for bits in [0x01, 0x80, 0xff] {
            for data in [true, false] {
                let bm = resealed(|s| {
                    let root = if data {
                        &mut s.data_space_map_root
                    } else {
                        &mut s.metadata_space_map_root
                    };
                    root[offset] ^= bits;
                });
                // It opens or not, but it does not panic, also not when it is used.
                if let Ok(mut md) = Metadata::open(bm, REOPEN) {
                    use_it(&mut md);
                }
            }
        }
    }
}

/// Does all kinds of things, which may fail.
fn use_it(md: &mut Metadata<MemoryBm>) {
    let mut model = super::Model::default();
    let _ = md.free_data_blocks();
    let _ = md.create_thin(super::model::id(1));
    model.create(1);
    let _ = workload::insert(md, &mut model, 1, 0..3);
    let _ = md.reserve_metadata_snap(no_flush);
    let _ = md.resize_data(50);
    let _ = md.commit();
    let _ = md.abort();
}

#[test]
fn any_one_broken_block_is_an_error_or_is_not_noticed() {
    let (md, model) = workload::base();
    for block in 1..80 {
        for n in 0..8_u64 {
            let bm = md.bm().crash();
            bm.tamper(block, |data| {
                // Anywhere in the block, its first entries more often, and with a right checksum.
                let x = (block * 31 + n * 7919).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let offset = 4 + (x >> 33) as usize % if n % 2 == 0 { 100 } else { 4000 };
                data[offset] ^= (x >> 13) as u8 | 1;
                reseal(data);
            });
            walk_and_change(bm, &model);
        }
    }
}

/// Gives a block that was changed the checksum of its kind, if it had a right one of a kind before.
fn reseal(data: &mut [u8; 4096]) {
    // Whichever kind it is, one of these is found by its reader; the others are not worse than noise.
    let block = u64::from_le_bytes(data[8..16].try_into().expect("eight bytes"));
    (persistent_data::btree::VALIDATOR.prepare)(data, block);
}

#[test]
fn a_device_too_small_is_an_error_and_a_huge_one_is_not() {
    for nr_blocks in 1..8 {
        let result = Metadata::open(MemoryBm::new(nr_blocks), PARAMS).map(drop);
        assert!(result.is_err());
    }
    let md = Metadata::open(MemoryBm::new(METADATA_MAX_BLOCKS + 1000), PARAMS).expect("a pool");
    assert_eq!(md.nr_metadata_blocks(), Ok(METADATA_MAX_BLOCKS));
    let superblock = Superblock::read(md.bm(), 0).expect("a superblock");
    assert_eq!(superblock.metadata_nr_blocks.get(), METADATA_MAX_BLOCKS);
}

/// Walks and changes everything, which may fail.
fn walk_and_change(bm: MemoryBm, model: &super::Model) {
    let Ok(mut md) = Metadata::open(bm, REOPEN) else {
        return;
    };
    if let Ok(view) = View::new(md.bm()) {
        let _ = view.for_devices(|id, _| view.for_mappings(id, |_, _| Ok(())));
        let _ = view.metadata_snap().map(|snap| {
            snap.map(|snap| snap.for_devices(|id, _| snap.for_mappings(id, |_, _| Ok(()))))
        });
    }
    for dev in 0..6 {
        if let Ok(thin) = md.open_thin(super::model::id(dev)) {
            let _ = md.highest_mapped(&thin);
            let _ = md.find_mapped_range(&thin, 0, u64::MAX);
            md.close_thin(&thin);
        }
    }
    let _ = workload::change(&mut md, &mut model.clone());
    let _ = md.commit();
    let _ = md.abort();
    let _ = md.delete_thin(super::model::id(1), &mut |_| ());
    let _ = md.release_metadata_snap(&mut |_| ());
    let _ = md.commit();
}

#[test]
fn roots_that_lead_to_any_other_block_do_no_harm() {
    let (md, model) = workload::base();
    for block in 0..80_u64 {
        let roots: [fn(&mut Superblock, u64); 5] = [
            |s, block| s.data_mapping_root = block.into(),
            |s, block| s.device_details_root = block.into(),
            |s, block| s.held_root = block.into(),
            |s, block| s.data_space_map_root[16..24].copy_from_slice(&block.to_le_bytes()),
            |s, block| s.metadata_space_map_root[24..32].copy_from_slice(&block.to_le_bytes()),
        ];
        for root in roots {
            let bm = md.bm().crash();
            bm.tamper(0, |data| {
                root(Superblock::of_mut(data).expect("a block"), block);
                (VALIDATOR.prepare)(data, 0);
            });
            walk_and_change(bm, &model);
        }
    }
}

#[test]
fn nodes_that_lead_to_any_other_block_do_no_harm() {
    let (md, model) = workload::base();
    for node in 1..80 {
        for to in [0, 1, node, node + 1, node + 7, u64::MAX] {
            let bm = md.bm().crash();
            bm.tamper(node, |data| {
                // The first and the second value of a node with values of 8 bytes: after 252 keys.
                for offset in [32 + 252 * 8, 32 + 252 * 8 + 8] {
                    data[offset..offset + 8].copy_from_slice(&to.to_le_bytes());
                }
                (persistent_data::btree::VALIDATOR.prepare)(data, node);
            });
            walk_and_change(bm, &model);
        }
    }
}

#[test]
fn a_mapping_beyond_the_data_device_is_an_error() {
    let (md, _) = workload::base();
    let bm = md.bm().crash();
    let data_sm_root = Superblock::read(&bm, 0).expect("a superblock");
    let nr_blocks = data_sm_root.data_sm_root().expect("a root").nr_blocks;
    assert_eq!(nr_blocks.get(), 3000);
    bm.tamper(0, |data| {
        let superblock = Superblock::of_mut(data).expect("a block");
        superblock.data_space_map_root[..8].copy_from_slice(&100_u64.to_le_bytes());
        superblock.data_space_map_root[8..16].copy_from_slice(&100_u64.to_le_bytes());
        (VALIDATOR.prepare)(data, 0);
    });
    let mut md = Metadata::open(bm, REOPEN).expect("it opens");
    let id = super::model::id(1);
    let thin = md.open_thin(id).expect("the device exists");
    let wanted = Error::BadMapping {
        device: id,
        virtual_block: 100,
        data_block: 100,
    };
    assert!(md.find_block(&thin, 99, true).is_ok());
    assert_eq!(md.find_block(&thin, 100, true), Err(wanted));
    assert_eq!(md.find_mapped_range(&thin, 0, 400), Err(wanted));
    assert_eq!(wanted.errno(), 84);
    md.close_thin(&thin);
}
