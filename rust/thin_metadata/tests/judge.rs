// SPDX-License-Identifier: GPL-2.0

//! What must be true of a pool that equals a model.

use std::collections::{
    BTreeMap,
    BTreeSet, //
};

use persistent_data::block_manager::BlockManager;

use super::model::{
    id,
    Device,
    Model,
    Pool, //
};
use crate::{
    format::{
        BlockTime,
        MAX_DATA_BLOCKS, //
    },
    Error,
    MappedRange,
    Mapping,
    Metadata,
    ThinHandle,
    View, //
};

impl Model {
    /// Checks all that can be asked of `md` against the model.
    pub(super) fn check<B: BlockManager>(&self, md: &mut Metadata<B>) {
        let pool = &self.pool;
        assert_eq!(md.transaction_id(), Ok(pool.transaction_id));
        assert_eq!(md.time(), pool.time);
        assert_eq!(
            md.metadata_snap().map(|x| x.is_some()),
            Ok(self.held.is_some())
        );
        for (&dev, device) in &pool.devices {
            check_device(md, dev, device, pool.nr_data);
        }
        for dev in 0..20 {
            if !pool.devices.contains_key(&dev) {
                assert_eq!(md.open_thin(id(dev)), Err(Error::NoDevice(id(dev))));
            }
        }
        self.check_references(md);
    }

    /// Checks the reference counts of all data blocks.
    ///
    /// A node of a tree that several devices share refers to its data blocks once, so a count is not more
    /// than the number of mappings, and not zero if there are any.
    fn check_references<B: BlockManager>(&self, md: &Metadata<B>) {
        let references = self.references();
        for block in 0..self.pool.nr_data {
            let found = md.data_sm.get_count(&md.bm, block).expect("a count");
            let wanted = references.get(&block).copied().unwrap_or(0);
            assert_eq!(found == 0, wanted == 0, "block {block}: {found}, {wanted}");
            assert!(found <= wanted, "block {block}: {found}, {wanted}");
            assert_eq!(md.block_is_shared(block), Ok(found > 1));
        }
    }

    /// Checks `md`, which has just been committed or opened, against the model.
    pub(super) fn check_committed<B: BlockManager>(&self, md: &mut Metadata<B>) {
        self.check(md);
        assert!(!md.needs_commit());
        assert!(!md.changed_this_transaction());
        assert_eq!(md.nr_data_blocks(), Ok(self.pool.nr_data));
        assert_eq!(
            md.free_data_blocks(),
            Ok(self.pool.nr_data - self.used().len() as u64)
        );
        let view = View::new(md.bm()).expect("a view");
        assert_eq!(read(&view), self.pool);
        check_differences(&view, &self.pool);
        let snap = view.metadata_snap().expect("a superblock");
        assert_eq!(snap.map(|snap| read(&snap)), self.held);
    }
}

fn check_device<B: BlockManager>(md: &mut Metadata<B>, dev: u64, device: &Device, nr_data: u64) {
    let thin = md.open_thin(id(dev)).expect("the device exists");
    assert_eq!(md.mapped_count(&thin), Ok(device.mapped_blocks));
    assert_eq!(
        md.highest_mapped(&thin),
        Ok(device.mappings.keys().next_back().copied())
    );
    let wanted = |virtual_block: u64| {
        device
            .mappings
            .get(&virtual_block)
            .map(|&(block, time)| Mapping {
                block,
                shared: device.snapshotted_time > time,
            })
    };
    for &virtual_block in device.mappings.keys() {
        for near in [virtual_block, virtual_block.wrapping_add(1)] {
            assert_eq!(md.find_block(&thin, near, true), Ok(wanted(near)));
            // Everything was just read.
            assert_eq!(md.find_block(&thin, near, false), Ok(wanted(near)));
        }
    }
    assert_eq!(md.snapshotted_time(&thin), Ok(device.snapshotted_time));
    for &virtual_block in device.mappings.keys().step_by(7) {
        for block in [virtual_block, virtual_block + 1, virtual_block + 64] {
            check_near(md, &thin, device, block);
        }
    }

    let mut ranges = Vec::new();
    for &virtual_block in device.mappings.keys() {
        let Mapping { block, shared } = wanted(virtual_block).expect("it is mapped");
        assert!(block < nr_data && nr_data <= MAX_DATA_BLOCKS);
        match ranges.last_mut() {
            Some(MappedRange {
                begin,
                end,
                block: first,
                shared: s,
            }) if *end == virtual_block && *s == shared && *first + (*end - *begin) == block => {
                *end += 1;
            }
            _ => ranges.push(MappedRange {
                begin: virtual_block,
                end: virtual_block + 1,
                block,
                shared,
            }),
        }
    }
    let mut found = Vec::new();
    let mut begin = 0;
    while let Some(range) = md
        .find_mapped_range(&thin, begin, u64::MAX)
        .expect("a range")
    {
        begin = range.end;
        found.push(range);
    }
    assert_eq!(found, ranges);
    md.close_thin(&thin);
}

/// Checks what a look-up of `block` tells of its neighbours: all those that are in the same leaf.
fn check_near<B: BlockManager>(md: &Metadata<B>, thin: &ThinHandle, device: &Device, block: u64) {
    let window = block & !63..(block & !63) + 64;
    let mut found = Vec::new();
    let mapping = md.find_block_near(thin, block, false, window.clone(), |block, value| {
        assert_eq!(BlockTime::from_word(value.to_word()), value);
        found.push((block, (value.block(), value.time())));
    });
    assert_eq!(mapping, md.find_block(thin, block, false));

    let wanted: Vec<_> = device
        .mappings
        .range(window)
        .map(|(block, value)| (*block, *value))
        .collect();
    // A leaf may begin or end within the window; it has a third of its 252 entries at least, unless it is the only one.
    assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0));
    let own = wanted.iter().position(|(b, _)| *b == block);
    assert_eq!(own.is_some(), found.iter().any(|(b, _)| *b == block));
    assert!(wanted.windows(found.len().max(1)).any(|run| run == found) || found.is_empty());
    if device.mappings.len() < 84 {
        assert_eq!(found, wanted);
    }
}

/// All that a view shows.
pub(super) fn read<B: BlockManager>(view: &View<'_, B>) -> Pool {
    let superblock = view.superblock();
    let mut pool = Pool {
        time: superblock.time.get(),
        transaction_id: superblock.trans_id.get(),
        nr_data: superblock.data_sm_root().expect("a root").nr_blocks.get(),
        devices: BTreeMap::new(),
    };
    view.for_devices(|id, details| {
        assert_eq!(view.device(id), Ok(Some(details)));
        let mut device = Device {
            mapped_blocks: details.mapped_blocks.get(),
            transaction_id: details.transaction_id.get(),
            creation_time: details.creation_time.get(),
            snapshotted_time: details.snapshotted_time.get(),
            mappings: BTreeMap::new(),
        };
        view.for_mappings(id, |virtual_block, value| {
            device
                .mappings
                .insert(virtual_block, (value.block(), value.time()));
            Ok(())
        })?;
        if let Some((&virtual_block, &(block, _))) = device.mappings.iter().next() {
            let found = view.mapping(id, virtual_block)?;
            assert_eq!(found.map(|x| x.block()), Some(block));
        }
        assert!(pool.devices.insert(id.key(), device).is_none());
        Ok(())
    })
    .expect("a walk");
    pool
}

/// Compares each device with the next one.
fn check_differences<B: BlockManager>(view: &View<'_, B>, pool: &Pool) {
    let devices: Vec<_> = pool.devices.iter().collect();
    for pair in devices.windows(2) {
        let [(&left, l), (&right, r)] = pair else {
            panic!("windows of two");
        };
        let blocks: BTreeSet<_> = l.mappings.keys().chain(r.mappings.keys()).collect();
        let mut all: Vec<_> = blocks
            .into_iter()
            .map(|b| (*b, l.mappings.get(b).copied(), r.mappings.get(b).copied()))
            .collect();
        let unpack = |value: BlockTime| (value.block(), value.time());

        let mut found = Vec::new();
        view.merge(id(left), id(right), |block, l, r| {
            found.push((block, l.map(unpack), r.map(unpack)));
            Ok(())
        })
        .expect("merge");
        assert_eq!(found, all);

        found.clear();
        view.diff(id(left), id(right), |block, l, r| {
            found.push((block, l.map(unpack), r.map(unpack)));
            Ok(())
        })
        .expect("diff");
        all.retain(|(_, l, r)| l.map(|x| x.0) != r.map(|x| x.0));
        assert_eq!(found, all);

        let enough = Err(Error::EndOfTime);
        let stopped = view.merge(id(left), id(right), |_, _, _| enough);
        let is_empty = l.mappings.is_empty() && r.mappings.is_empty();
        assert_eq!(stopped, if is_empty { Ok(()) } else { enough });
    }
}
