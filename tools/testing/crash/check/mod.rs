// SPDX-License-Identifier: GPL-2.0

//! A checker of images of a pool's metadata.
//!
//! It reads all that the superblock leads to, that of the metadata snapshot included, counts every reference, and compares
//! with both space maps. It knows the format, and nothing of the libraries that write it. What `thin_check` complains of,
//! it does, too; and it wants more:
//!
//! - No block has a reference count that is not accounted for: nothing leaks.
//! - The free entries that the indexes of the space maps tell of are those of the bitmaps. Whether entries beyond the end
//!   of the last bitmap count is left open.
//! - The tree of reference counts has those that do not fit the bitmaps, and no others.
//! - No time is later than that of the pool.

mod counts;
mod space_map;
mod tree;

use crate::{
    image::Blocks,
    model::{
        Model,
        Pool, //
    },
};

use self::{
    counts::{
        Counts,
        Kind, //
    },
    space_map::SpaceMap,
    tree::Tree, //
};

/// What is wrong with an image.
pub type Finding = String;

/// The result of a check.
pub type Result<T = ()> = core::result::Result<T, Finding>;

const SUPERBLOCK_CSUM_XOR: u32 = 160_774;
const MAGIC: u64 = 27_022_010;
const TIME_BITS: u32 = 24;
const MAX_TIME: u64 = (1 << TIME_BITS) - 1;

/// A device and its mappings.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its id.
    pub id: u64,
    /// How many blocks are mapped.
    pub mapped_blocks: u64,
    /// The pool's transaction id when it was created.
    pub transaction_id: u64,
    /// The time when it was created.
    pub creation_time: u32,
    /// The time when it was last part of a snapshot.
    pub snapshotted_time: u32,
    /// Virtual blocks, each with the word of its mapping: the data block, shifted by 24, and the time.
    pub mappings: Vec<(u64, u64)>,
}

/// What a superblock leads to.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// How many snapshots have been taken.
    pub time: u32,
    /// The transaction id.
    pub transaction_id: u64,
    /// The size of the data device in blocks; zero in a metadata snapshot.
    pub nr_data: u64,
    /// The devices by their ids.
    pub devices: Vec<Device>,
}

/// All that an image holds.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Content {
    /// The size of the metadata device that the space map knows.
    pub nr_metadata: u64,
    /// The pool.
    pub live: Snapshot,
    /// The metadata snapshot.
    pub held: Option<Snapshot>,
}

impl Snapshot {
    fn of_model(pool: &Pool) -> Self {
        let devices = pool.devices.iter().map(|(id, device)| Device {
            id: *id,
            mapped_blocks: device.mapped_blocks,
            transaction_id: device.transaction_id,
            creation_time: device.creation_time,
            snapshotted_time: device.snapshotted_time,
            mappings: device
                .mappings
                .iter()
                .map(|(virtual_block, (block, time))| {
                    (*virtual_block, (block << TIME_BITS) | u64::from(*time))
                })
                .collect(),
        });
        Self {
            time: pool.time,
            transaction_id: pool.transaction_id,
            nr_data: pool.nr_data,
            devices: devices.collect(),
        }
    }

    /// What differs, in one line.
    fn difference(&self, wanted: &Self) -> String {
        let head = |s: &Self| (s.time, s.transaction_id, s.nr_data);
        if head(self) != head(wanted) {
            return format!(
                "time, transaction and size {:?}, wanted {:?}",
                head(self),
                head(wanted)
            );
        }
        let ids = |s: &Self| s.devices.iter().map(|d| d.id).collect::<Vec<_>>();
        if ids(self) != ids(wanted) {
            return format!("devices {:?}, wanted {:?}", ids(self), ids(wanted));
        }
        for (found, wanted) in self.devices.iter().zip(&wanted.devices) {
            if found == wanted {
                continue;
            }
            let head = |d: &Device| Device {
                mappings: Vec::new(),
                ..d.clone()
            };
            if head(found) != head(wanted) {
                return format!("{:?}, wanted {:?}", head(found), head(wanted));
            }
            let first = found
                .mappings
                .iter()
                .zip(&wanted.mappings)
                .find(|(a, b)| a != b);
            return format!("device {}: mapping {first:?} differs", found.id);
        }
        "nothing".into()
    }
}

impl Content {
    /// What an image of a model holds.
    pub fn of_model(model: &Model, nr_metadata: u64) -> Self {
        Self {
            nr_metadata,
            live: Snapshot::of_model(&model.pool),
            held: model.held.as_ref().map(Snapshot::of_model),
        }
    }

    /// Compares with what is wanted.
    pub fn expect(&self, wanted: &Self) -> Result {
        if self == wanted {
            return Ok(());
        }
        if self.nr_metadata != wanted.nr_metadata {
            return Err(format!(
                "{} metadata blocks, wanted {}",
                self.nr_metadata, wanted.nr_metadata
            ));
        }
        if self.live != wanted.live {
            return Err(self.live.difference(&wanted.live));
        }
        Err(match (&self.held, &wanted.held) {
            (Some(found), Some(wanted)) => {
                format!("metadata snapshot: {}", found.difference(wanted))
            }
            (found, _) => format!("a metadata snapshot: {}", found.is_some()),
        })
    }
}

fn u32_at(data: &[u8], offset: usize) -> u32 {
    data.get(offset..offset + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn u64_at(data: &[u8], offset: usize) -> u64 {
    data.get(offset..offset + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// The fields of a superblock.
struct Superblock<'a>(&'a [u8]);

impl<'a> Superblock<'a> {
    fn read<B: Blocks + ?Sized>(counts: &mut Counts<'a, B>, block: u64) -> Result<Self> {
        if !counts.add_reference(block, Kind::Superblock)? {
            return Err(format!("superblock {block} is referenced twice"));
        }
        let data = counts.checked(block, SUPERBLOCK_CSUM_XOR, 8)?;
        let this = Self(data);
        if u64_at(data, 32) != MAGIC {
            return Err(format!("superblock {block}: magic number"));
        }
        if !(1..=2).contains(&this.u32(40)) {
            return Err(format!("superblock {block}: version {}", this.u32(40)));
        }
        if this.u32(340) != 8 {
            return Err(format!("superblock {block}: metadata block size"));
        }
        let data_block_size = this.u32(336);
        if !(128..=1 << 21).contains(&data_block_size) || !data_block_size.is_multiple_of(128) {
            return Err(format!(
                "superblock {block}: data block size {data_block_size}"
            ));
        }
        if [352, 356, 360].iter().any(|at| this.u32(*at) != 0) {
            return Err(format!("superblock {block}: features"));
        }
        Ok(this)
    }

    fn u32(&self, offset: usize) -> u32 {
        u32_at(self.0, offset)
    }

    fn u64(&self, offset: usize) -> u64 {
        u64_at(self.0, offset)
    }

    fn time(&self) -> u32 {
        self.u32(44)
    }

    fn transaction_id(&self) -> u64 {
        self.u64(48)
    }

    fn held_root(&self) -> u64 {
        self.u64(56)
    }

    /// The root of the data or of the metadata space map.
    fn space_map_root(&self, offset: usize) -> [u64; 4] {
        [0, 8, 16, 24].map(|at| self.u64(offset + at))
    }

    fn mapping_root(&self) -> u64 {
        self.u64(320)
    }

    fn details_root(&self) -> u64 {
        self.u64(328)
    }
}

const DATA_SPACE_MAP: usize = 64;
const METADATA_SPACE_MAP: usize = 192;

/// The seeds of the checksums of all kinds of blocks.
const CSUM_XORS: [u32; 4] = [
    SUPERBLOCK_CSUM_XOR,
    tree::CSUM_XOR,
    space_map::INDEX_CSUM_XOR,
    space_map::BITMAP_CSUM_XOR,
];

/// The seed of the checksum of a block that has the right one: it tells superblocks, nodes, indexes and bitmaps.
pub fn seal_of(data: &[u8]) -> Option<u32> {
    let body = data.get(4..)?;
    let sum = !crc32c::crc32c(body);
    let found = u32_at(data, 0);
    CSUM_XORS.into_iter().find(|xor| sum ^ xor == found)
}

/// Makes the checksum right again, for a seed that [`seal_of`] gave.
pub fn seal(data: &mut [u8], xor: u32) {
    if let Some((head, body)) = data.split_at_mut_checked(4) {
        head.copy_from_slice(&(!crc32c::crc32c(body) ^ xor).to_le_bytes());
    }
}

/// Checks an image, and gives what it holds.
pub fn check<B: Blocks + ?Sized>(image: &B) -> Result<Content> {
    if image.nr_blocks() == 0 {
        return Err("no superblock".into());
    }
    let mut counts = Counts::new(image);
    let superblock = Superblock::read(&mut counts, 0)?;
    let mut metadata_map =
        SpaceMap::metadata(&mut counts, superblock.space_map_root(METADATA_SPACE_MAP))
            .map_err(|e| format!("metadata space map: {e}"))?;
    let mut data_map = SpaceMap::data(&mut counts, superblock.space_map_root(DATA_SPACE_MAP))
        .map_err(|e| format!("data space map: {e}"))?;

    let nr_metadata = metadata_map.nr_blocks();
    let nr_data = data_map.nr_blocks();
    let mut data_counts = vec![0; nr_data as usize];
    let live = snapshot(&mut counts, &superblock, &mut data_counts, nr_data)?;
    let held = match superblock.held_root() {
        0 => None,
        block => {
            let held = Superblock::read(&mut counts, block)?;
            if held.0[64..320].iter().any(|byte| *byte != 0) || held.held_root() != 0 {
                return Err("metadata snapshot with roots of space maps".into());
            }
            if held.time() > superblock.time() {
                return Err("metadata snapshot of the future".into());
            }
            let content = snapshot(&mut counts, &held, &mut data_counts, 0)
                .map_err(|e| format!("metadata snapshot: {e}"))?;
            Some(content)
        }
    };

    let metadata_counts = counts.finish();
    if metadata_counts
        .iter()
        .skip(nr_metadata as usize)
        .any(|c| *c != 0)
    {
        return Err("a block beyond the end of the metadata space map is in use".into());
    }
    metadata_map
        .compare(image, &metadata_counts[..nr_metadata as usize])
        .map_err(|e| format!("metadata space map: {e}"))?;
    data_map
        .compare(image, &data_counts)
        .map_err(|e| format!("data space map: {e}"))?;
    Ok(Content {
        nr_metadata,
        live,
        held,
    })
}

/// What a superblock leads to, with its references to data blocks.
fn snapshot<'a, B: Blocks + ?Sized>(
    counts: &mut Counts<'a, B>,
    superblock: &Superblock<'a>,
    data_counts: &mut [u32],
    nr_data: u64,
) -> Result<Snapshot> {
    let time = superblock.time();
    if u64::from(time) > MAX_TIME {
        return Err(format!("time {time}"));
    }
    let mut devices: Vec<Device> = Vec::new();
    Tree::new(Kind::Details, 24)
        .walk(counts, superblock.details_root(), &mut |_, _, id, value| {
            let device = Device {
                id,
                mapped_blocks: u64_at(value, 0),
                transaction_id: u64_at(value, 8),
                creation_time: u32_at(value, 16),
                snapshotted_time: u32_at(value, 20),
                mappings: Vec::new(),
            };
            if id > 0xff_ffff || device.creation_time > time || device.snapshotted_time > time {
                return Err(format!("device {id}: {device:?} at time {time}"));
            }
            devices.push(device);
            Ok(())
        })
        .map_err(|e| format!("details: {e}"))?;

    let mut next = 0;
    Tree::new(Kind::TopLevel, 8)
        .walk(
            counts,
            superblock.mapping_root(),
            &mut |counts, is_first, id, root| {
                let device = devices
                    .get_mut(next)
                    .filter(|device| device.id == id)
                    .ok_or_else(|| format!("device {id} has no details, or another has no tree"))?;
                next += 1;
                let mut tree = Tree::new(Kind::Mappings, 8);
                tree.is_counting = is_first;
                device
                    .mappings
                    .reserve(device.mapped_blocks.min(4096) as usize);
                tree.walk(
                    counts,
                    u64_at(root, 0),
                    &mut |_, is_first, virtual_block, value| {
                        let word = u64_at(value, 0);
                        if word & MAX_TIME > u64::from(time) {
                            return Err(format!("block {virtual_block} is of the future"));
                        }
                        let data_block = usize::try_from(word >> TIME_BITS).ok();
                        let Some(count) = data_block.and_then(|b| data_counts.get_mut(b)) else {
                            return Err(format!(
                                "block {virtual_block} is mapped to {data_block:?}"
                            ));
                        };
                        if is_first {
                            *count += 1;
                        }
                        device.mappings.push((virtual_block, word));
                        Ok(())
                    },
                )
                .map_err(|e| format!("device {id}: {e}"))?;
                if device.mappings.len() as u64 != device.mapped_blocks {
                    return Err(format!(
                        "device {id} has {} mappings, its details say {}",
                        device.mappings.len(),
                        device.mapped_blocks
                    ));
                }
                Ok(())
            },
        )
        .map_err(|e| format!("mappings: {e}"))?;
    if let Some(device) = devices.get(next) {
        return Err(format!("device {} has no mappings", device.id));
    }
    Ok(Snapshot {
        time,
        transaction_id: superblock.transaction_id(),
        nr_data,
        devices,
    })
}
