// SPDX-License-Identifier: GPL-2.0

//! Pools in files, made by random operations.

use std::collections::BTreeMap;

use persistent_data::file::FileBm;
use proptest::prelude::*;
use tempfile::NamedTempFile;
use thin_metadata::{
    DeviceId,
    Metadata,
    OpenParams, //
};
use thinctl::relations::Relation;

pub const NR_DATA: u64 = 30_000;

#[derive(Clone, Debug)]
pub enum Op {
    Create(u64),
    Snap(u64, u64),
    /// Maps so many blocks from one on, at a distance.
    Insert(u64, u64, u64, u64),
    Remove(u64, u64, u64),
    Delete(u64),
    Commit,
}

pub fn ops() -> impl Strategy<Value = Vec<Op>> {
    let dev = || 1..6u64;
    let op = prop_oneof![
        2 => dev().prop_map(Op::Create),
        4 => (dev(), dev()).prop_map(|(dev, origin)| Op::Snap(dev, origin)),
        3 => (dev(), 0..3000u64, 1..2000u64, 1..4u64)
            .prop_map(|(dev, begin, n, step)| Op::Insert(dev, begin, n, step)),
        4 => (dev(), 0..6000u64, 1..30u64, 1..90u64)
            .prop_map(|(dev, begin, n, step)| Op::Insert(dev, begin, n, step)),
        3 => (dev(), 0..6000u64, 1..300u64).prop_map(|(dev, begin, n)| Op::Remove(dev, begin, n)),
        1 => dev().prop_map(Op::Delete),
        1 => Just(Op::Commit),
    ];
    prop::collection::vec(op, 1..40)
}

pub fn id(dev: u64) -> DeviceId {
    DeviceId::try_from(dev).expect("a small id")
}

/// What there is to know of a pool beyond its metadata.
#[derive(Default)]
pub struct Truth {
    /// The volumes, and the snapshots with their origins; each life of an id is another volume.
    pub volumes: BTreeMap<u64, (u64, Option<(u64, u64)>)>,
    nr_lives: u64,
}

impl Truth {
    fn add(&mut self, dev: u64, origin: Option<u64>) {
        let origin = origin.map(|origin| (origin, self.volumes[&origin].0));
        self.nr_lives += 1;
        self.volumes.insert(dev, (self.nr_lives, origin));
    }

    /// Whether what is said of a volume is not wrong.
    pub fn allows(&self, dev: u64, relation: Relation) -> bool {
        let origin = self.volumes[&dev].1;
        let lives = |(id, life)| self.volumes.get(&id).is_some_and(|v| v.0 == life);
        match relation {
            Relation::Volume => origin.is_none(),
            Relation::SnapshotOf { origin: said } => {
                origin.is_some_and(|o| o.0 == said && lives(o))
            }
            Relation::Snapshot => origin.is_some(),
            Relation::Unknown { origin: said } => match (origin, said) {
                (None, _) => true,
                (Some(o), Some(said)) => o.0 == said && lives(o),
                (Some(_), None) => true,
            },
        }
    }
}

pub fn build(ops: &[Op]) -> (NamedTempFile, Truth) {
    let file = NamedTempFile::new_in("/var/tmp").expect("temporary file");
    let bm = FileBm::create(file.path(), 4096).expect("a file");
    let params = OpenParams {
        data_block_size: 128,
        format: true,
        read_only: false,
    };
    let mut md = Metadata::open(bm, params).expect("a new pool");
    md.resize_data(NR_DATA).expect("resize");
    md.commit().expect("commit");
    let mut truth = Truth::default();
    for op in ops {
        apply(&mut md, &mut truth, op).expect("an operation");
    }
    md.close(|| Ok(())).expect("close");
    (file, truth)
}

fn apply(md: &mut Metadata<FileBm>, truth: &mut Truth, op: &Op) -> thin_metadata::Result {
    let exists = |truth: &Truth, dev| truth.volumes.contains_key(&dev);
    match *op {
        Op::Create(dev) if !exists(truth, dev) => {
            md.create_thin(id(dev))?;
            truth.add(dev, None);
        }
        Op::Snap(dev, origin) if !exists(truth, dev) && exists(truth, origin) => {
            md.create_snap(id(dev), id(origin))?;
            truth.add(dev, Some(origin));
        }
        Op::Insert(dev, begin, n, step) if exists(truth, dev) => {
            let thin = md.open_thin(id(dev))?;
            for virtual_block in (0..n).map(|i| begin + i * step) {
                if md.free_data_blocks()? == 0 {
                    break;
                }
                // Blocks freed since the last commit are not given.
                let Ok(data_block) = md.alloc_data_block(&mut |_| true) else {
                    break;
                };
                md.insert_block(&thin, virtual_block, data_block, &mut |_| ())?;
            }
            md.close_thin(&thin);
        }
        Op::Remove(dev, begin, n) if exists(truth, dev) => {
            let thin = md.open_thin(id(dev))?;
            md.remove_range(&thin, begin, begin + n, &mut |_| ())?;
            md.close_thin(&thin);
        }
        Op::Delete(dev) if exists(truth, dev) => {
            md.delete_thin(id(dev), &mut |_| ())?;
            truth.volumes.remove(&dev);
        }
        Op::Commit => md.commit()?,
        _ => {}
    }
    Ok(())
}
