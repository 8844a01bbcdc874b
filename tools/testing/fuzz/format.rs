// SPDX-License-Identifier: GPL-2.0

//! Raw bytes as blocks: all that reads a block on its own.

use persistent_data::{
    block::{
        BlockData,
        BLOCK_SIZE, //
    },
    btree,
    memory::MemoryBm, //
};
use thin_metadata::{
    format::Superblock,
    superblock,
    Metadata,
    OpenParams,
    View, //
};

use crate::{
    base::DATA_BLOCK_SIZE,
    image::Kind, //
};

/// Reads bytes as the blocks of a small device. The first byte tells which kinds they are sealed as.
pub fn read(bytes: &[u8]) {
    let Some((kinds, bytes)) = bytes.split_first() else {
        return;
    };
    let mut image = vec![0; BLOCK_SIZE * 8];
    // The first half kilobyte of each block is where all is that is checked.
    for (i, part) in bytes.chunks(512).take(8).enumerate() {
        let block: &mut BlockData = (&mut image[i * BLOCK_SIZE..][..BLOCK_SIZE])
            .try_into()
            .expect("a block");
        block[..part.len()].copy_from_slice(part);
        let kind = match (i, kinds & 1) {
            (_, 1) => Kind::Other,
            (0, _) => Kind::Superblock,
            (1..=4, _) => Kind::Node,
            (5, _) => Kind::Index,
            _ => Kind::Bitmap,
        };
        if kind != Kind::Other && kinds & 2 == 0 {
            block[8..16].copy_from_slice(&(i as u64).to_le_bytes());
        }
        if kind == Kind::Superblock && kinds & 4 == 0 {
            block[32..40].copy_from_slice(&27_022_010_u64.to_le_bytes());
        }
        kind.seal(block);
        let _ = (superblock::VALIDATOR.check)(block, i as u64);
        let _ = (btree::VALIDATOR.check)(block, i as u64);
        if let Ok(found) = Superblock::of(block) {
            let _ = found.check_format(kinds & 8 != 0);
            let _ = found.check_roots(8);
            let _ = found.data_sm_root();
        }
    }
    if let Ok(view) = View::new(&MemoryBm::from_image(&image)) {
        let _ = view.for_devices(|id, _| view.for_mappings(id, |_, _| Ok(())));
        let _ = view.metadata_snap();
    }
    let params = OpenParams {
        data_block_size: DATA_BLOCK_SIZE,
        format: kinds & 16 != 0,
        read_only: kinds & 8 != 0,
    };
    if let Ok(mut md) = Metadata::open(MemoryBm::from_image(&image), params) {
        let _ = md.alloc_data_block(&mut |_| true);
        let _ = md.release_metadata_snap(&mut |_| ());
        let _ = md.commit();
    }
}
