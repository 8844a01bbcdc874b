// SPDX-License-Identifier: GPL-2.0

//! The images that inputs start from: small ones, in which each structure of the format occurs.

use std::sync::OnceLock;

use persistent_data::{
    block::{
        BlockData,
        BLOCK_SIZE, //
    },
    memory::MemoryBm,
};
use thin_metadata::{
    DeviceId,
    Metadata,
    OpenParams,
    Result, //
};

use crate::{
    checker::{
        self,
        Depth, //
    },
    image::{
        Image,
        Kind, //
    },
};

/// The size of data blocks in sectors.
pub const DATA_BLOCK_SIZE: u32 = 128;

/// How the images are formatted.
const FORMAT: OpenParams = OpenParams {
    data_block_size: DATA_BLOCK_SIZE,
    format: true,
    read_only: false,
};

/// An image.
pub struct Base {
    /// What it holds.
    pub name: &'static str,
    /// The number of blocks of the data device.
    pub nr_data: u64,
    blocks: Vec<(Kind, Box<BlockData>)>,
    found: OnceLock<Found>,
}

/// What its last commit uses.
struct Found {
    counts: Vec<u32>,
    used: Vec<u64>,
    nodes: Vec<u64>,
}

impl Base {
    fn new(name: &'static str, md: &Metadata<MemoryBm>) -> Self {
        let bytes = md.bm().image();
        let (blocks, _) = bytes.as_chunks::<BLOCK_SIZE>();
        Self {
            name,
            nr_data: md.nr_data_blocks().expect("a healthy pool"),
            blocks: blocks
                .iter()
                .map(|data| (Kind::of(data), Box::new(*data)))
                .collect(),
            found: OnceLock::new(),
        }
    }

    /// A block.
    pub fn block(&self, block: u64) -> Option<&BlockData> {
        Some(&self.blocks.get(block as usize)?.1)
    }

    /// The kind of a block.
    pub fn kind(&self, block: u64) -> Kind {
        self.blocks
            .get(block as usize)
            .map_or(Kind::Other, |(kind, _)| *kind)
    }

    /// The size in blocks.
    pub fn nr_blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    fn found(&'static self) -> &'static Found {
        self.found.get_or_init(|| {
            let counts = checker::examine(&Image::new(self), Depth::All)
                .unwrap_or_else(|e| panic!("base image {}: {e}", self.name))
                .metadata;
            let of = |wanted: fn(Kind) -> bool| {
                let in_use = (0..).zip(&counts).filter(|(_, count)| **count > 0);
                in_use
                    .map(|(block, _)| block)
                    .filter(|block| wanted(self.kind(*block)))
                    .collect()
            };
            Found {
                used: of(|_| true),
                nodes: of(|kind| kind == Kind::Node),
                counts,
            }
        })
    }

    /// How often each block is used.
    pub fn counts(&'static self) -> &'static [u32] {
        &self.found().counts
    }

    /// The blocks that are used.
    pub fn used(&'static self) -> &'static [u64] {
        &self.found().used
    }

    /// Those of them that are nodes.
    pub fn nodes(&'static self) -> &'static [u64] {
        &self.found().nodes
    }
}

/// All base images.
pub fn all() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| {
        type Make = fn(&mut Metadata<MemoryBm>) -> Result;
        let bases: [(&str, u64, u64, Make); 8] = [
            ("empty", 64, 100, |_| Ok(())),
            ("volumes", 128, 1000, volumes),
            ("snapshots", 512, 3000, snapshots),
            ("deep", 512, 40_000, deep),
            ("many references", 128, 300, many_references),
            ("metadata snapshot", 128, 400, metadata_snap),
            ("full", 48, 60, full),
            ("many volumes", 512, 600, many_volumes),
        ];
        bases
            .iter()
            .map(|&(name, nr_blocks, nr_data, make)| {
                let bm = MemoryBm::new(nr_blocks);
                let mut md = Metadata::open(bm, FORMAT).expect("a new pool");
                md.resize_data(nr_data)
                    .and_then(|()| make(&mut md))
                    .and_then(|()| md.commit())
                    .unwrap_or_else(|e| panic!("base image {name}: {e}"));
                Base::new(name, &md)
            })
            .collect()
    })
}

fn id(id: u64) -> DeviceId {
    DeviceId::try_from(id).expect("a small number")
}

/// Maps `n` blocks from `begin` on, `step` apart.
fn map(md: &mut Metadata<MemoryBm>, dev: u64, begin: u64, n: u32, step: u64) -> Result {
    let mut data = Vec::new();
    let taken = md.alloc_data_blocks(n, &mut |_| true, &mut |run| data.extend(run))?;
    assert_eq!(taken, n);
    let pairs: Vec<_> = (0..).map(|i| begin + i * step).zip(data).collect();
    let thin = md.open_thin(id(dev))?;
    let result = md.insert_blocks(&thin, &pairs, &mut |_| ());
    md.close_thin(&thin);
    result
}

fn volumes(md: &mut Metadata<MemoryBm>) -> Result {
    for dev in 0..4 {
        md.create_thin(id(dev))?;
        map(md, dev, dev * 10, 30 + dev as u32 * 60, dev + 1)?;
        md.commit()?;
    }
    md.create_thin(id(0xff_ffff))
}

fn snapshots(md: &mut Metadata<MemoryBm>) -> Result {
    md.create_thin(id(1))?;
    map(md, 1, 0, 400, 1)?;
    md.create_snap(id(2), id(1))?;
    md.commit()?;
    md.create_snap(id(3), id(2))?;
    map(md, 2, 100, 50, 1)?;
    md.commit()?;
    map(md, 3, 300, 120, 7)
}

fn deep(md: &mut Metadata<MemoryBm>) -> Result {
    md.create_thin(id(1))?;
    // More leaves than a node has room for: the tree has three levels, and keeps them when most of it goes.
    map(md, 1, 0, 34_000, 1)?;
    md.commit()?;
    let thin = md.open_thin(id(1))?;
    for i in 0..1000 {
        let begin = 3 + i * 34;
        if let Err(e) = md.remove_range(&thin, begin, begin + 11, &mut |_| ()) {
            md.close_thin(&thin);
            return Err(e);
        }
    }
    md.close_thin(&thin);
    md.create_snap(id(2), id(1))?;
    map(md, 2, 7000, 10, 3)
}

fn many_references(md: &mut Metadata<MemoryBm>) -> Result {
    md.create_thin(id(1))?;
    map(md, 1, 0, 100, 1)?;
    for dev in 2..9 {
        md.create_snap(id(dev), id(1))?;
    }
    md.commit()?;
    // Each of these copies a leaf, which adds references to what it holds.
    for dev in 2..7 {
        map(md, dev, dev * 7, 3, 2)?;
    }
    md.commit()
}

fn metadata_snap(md: &mut Metadata<MemoryBm>) -> Result {
    md.create_thin(id(1))?;
    map(md, 1, 0, 150, 1)?;
    md.create_snap(id(2), id(1))?;
    md.reserve_metadata_snap(|| Ok(()))?;
    md.commit()?;
    map(md, 1, 40, 20, 1)?;
    md.delete_thin(id(2), &mut |_| ())?;
    md.create_thin(id(3))
}

fn full(md: &mut Metadata<MemoryBm>) -> Result {
    for dev in 0..12 {
        md.create_thin(id(dev))?;
        map(md, dev, 0, 4, 1)?;
    }
    md.commit()
}

fn many_volumes(md: &mut Metadata<MemoryBm>) -> Result {
    for dev in 0..280 {
        md.create_thin(id(dev * 3))?;
        if dev % 40 == 0 {
            map(md, dev * 3, 0, 5, 1000)?;
        }
        if dev % 100 == 0 {
            md.commit()?;
        }
    }
    Ok(())
}
