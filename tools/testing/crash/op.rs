// SPDX-License-Identifier: GPL-2.0

//! Random commands.

use crate::rng::Rng;

/// The highest device id of random commands.
pub const MAX_DEVICE: u64 = 5;

/// A command for a pool.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Creates a device.
    Create(u64),
    /// Takes a snapshot of another device.
    Snap(u64, u64),
    /// Deletes a device.
    Delete(u64),
    /// Maps so many blocks of a device from one on, at a distance, one at a time.
    Insert(u64, Blocks),
    /// The same, together; some data blocks more are taken, and put back.
    InsertTogether(u64, Blocks, u64),
    /// Removes so many blocks of a device from one on.
    Remove(u64, u64, u64),
    /// Removes all mappings of a device.
    RemoveAll(u64),
    /// References so many data blocks once more, from one on, and takes the references back.
    References(u64, u64),
    /// Changes the transaction id.
    TransactionId(u64),
    /// Adds so many data blocks.
    ResizeData(u64),
    /// Adds so many metadata blocks.
    ResizeMetadata(u64),
    /// Takes a metadata snapshot.
    Reserve,
    /// Releases the metadata snapshot.
    Release,
    /// Commits.
    Commit,
    /// Takes so many steps of a commit, and aborts or goes on.
    Steps(u64, bool),
    /// Gives up what was not committed.
    Abort,
    /// Closes the pool and opens it again.
    Reopen,
    /// Drops the pool and opens it again: what was not flushed may still get to the device.
    Kill,
    /// Looks blocks up, from one on, after all that is clean was dropped from memory.
    LookUp(u64, u64),
    /// Notes that the pool must be checked.
    NeedsCheck,
    /// Writes some of the changed blocks early, without a flush, as memory pressure does.
    WriteBack(u64),
}

/// Virtual blocks: the first, how many, and the distance between two.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// The first one.
    pub begin: u64,
    /// How many.
    pub count: u64,
    /// From one to the next.
    pub distance: u64,
}

impl Blocks {
    /// All of them.
    pub fn iter(self) -> impl Iterator<Item = u64> {
        (0..self.count).map(move |n| self.begin + n * self.distance)
    }
}

/// What a pool is like, and what happens to it.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// The size of the metadata device when it is formatted.
    pub nr_metadata: u64,
    /// The size of the data device at first.
    pub nr_data: u64,
    /// How many commands there are.
    pub nr_ops: u64,
    /// The most blocks to map at once.
    pub most_blocks: u64,
    /// How many of a hundred commands map blocks.
    pub inserts: u64,
    /// How many of a hundred commands take snapshots.
    pub snaps: u64,
}

impl Profile {
    /// The profile of a seed.
    pub fn of_seed(seed: u64, rng: &mut Rng) -> Self {
        let base = Self {
            nr_metadata: rng.within(100..260),
            nr_data: rng.within(300..2000),
            nr_ops: rng.within(40..90),
            most_blocks: 200,
            inserts: 30,
            snaps: 8,
        };
        match seed % 8 {
            // The metadata device is full now and then.
            1 => Self {
                nr_metadata: rng.within(14..36),
                ..base
            },
            // The data device is.
            2 => Self {
                nr_data: rng.within(10..80),
                most_blocks: 30,
                ..base
            },
            // The data device has several bitmaps.
            3 => Self {
                nr_data: rng.within(30_000..50_000),
                most_blocks: 700,
                ..base
            },
            // Reference counts do not fit the bitmaps.
            4 => Self {
                snaps: 30,
                most_blocks: 60,
                ..base
            },
            // Trees are deep.
            5 => Self {
                nr_metadata: rng.within(200..400),
                nr_data: 9000,
                most_blocks: 1500,
                ..base
            },
            // The metadata device grows into a second bitmap.
            6 if seed.is_multiple_of(32) => Self {
                nr_metadata: rng.within(16_290..16_320),
                ..base
            },
            // Both devices are full now and then.
            7 => Self {
                nr_metadata: rng.within(24..60),
                nr_data: rng.within(20..400),
                snaps: 20,
                ..base
            },
            _ => base,
        }
    }

    /// What a new pool begins with.
    pub fn first_ops(&self) -> Vec<Op> {
        let mut ops = vec![Op::ResizeData(self.nr_data)];
        ops.extend((0..3).map(Op::Create));
        ops
    }

    /// All other commands.
    pub fn ops(&self, rng: &mut Rng) -> Vec<Op> {
        let mut ops = Vec::new();
        for _ in 0..self.nr_ops {
            let op = self.op(rng);
            ops.push(op);
            // Whoever opens the pool next finds a superblock that a loss of power can still take away.
            if matches!(op, Op::Steps(3.., true)) && rng.one_in(2) {
                ops.push(Op::Kill);
            }
        }
        ops
    }

    fn blocks(&self, rng: &mut Rng) -> Blocks {
        let begin = match rng.within(0..10) {
            0 => (1 << 40) + rng.within(0..50),
            1..=7 => rng.within(0..400),
            _ => rng.within(0..5000),
        };
        let count = match rng.within(0..4) {
            0 => 1,
            1 => rng.within(1..20),
            _ => rng.within(1..self.most_blocks + 1),
        };
        Blocks {
            begin,
            count,
            distance: match rng.one_in(2) {
                true => 1,
                false => rng.within(1..9),
            },
        }
    }

    fn op(&self, rng: &mut Rng) -> Op {
        let dev = rng.within(0..MAX_DEVICE + 1);
        let mut n = rng.within(0..100);
        if n < self.inserts {
            let blocks = self.blocks(rng);
            return match rng.one_in(3) {
                true => Op::Insert(
                    dev,
                    Blocks {
                        count: blocks.count.min(40),
                        ..blocks
                    },
                ),
                false => Op::InsertTogether(dev, blocks, rng.within(0..6)),
            };
        }
        n -= self.inserts;
        if n < self.snaps {
            return Op::Snap(dev, rng.within(0..MAX_DEVICE + 1));
        }
        match rng.within(0..40) {
            0..=3 => Op::Create(dev),
            4..=5 => Op::Delete(dev),
            6..=10 => {
                let begin = self.blocks(rng).begin;
                let count = match rng.one_in(3) {
                    true => rng.within(1..20),
                    false => rng.within(1..self.most_blocks * 6),
                };
                Op::Remove(dev, begin, count)
            }
            11 => Op::RemoveAll(dev),
            12 => Op::References(rng.within(0..self.nr_data), rng.within(0..40)),
            13 => Op::TransactionId(rng.any()),
            14 => Op::ResizeData(rng.within(0..100)),
            15 => Op::ResizeMetadata(rng.within(0..24)),
            16..=17 => Op::Reserve,
            18 => Op::Release,
            19..=25 => Op::Commit,
            26..=28 => Op::Steps(rng.within(1..6), rng.one_in(3)),
            29 => Op::Abort,
            30 => Op::Reopen,
            31 => Op::Kill,
            32..=34 => Op::LookUp(dev, rng.within(0..600)),
            35 if rng.one_in(4) => Op::NeedsCheck,
            _ => Op::WriteBack(rng.any()),
        }
    }
}
