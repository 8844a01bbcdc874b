// SPDX-License-Identifier: GPL-2.0

//! What a run is to do.

use core::fmt;

use dm::{
    args::parse_u64,
    Args,
    SECTOR_SHIFT, //
};
use kernel::{
    prelude::*,
    str::CStr, //
};

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    /// `read`
    Read,
    /// `write`
    Write,
    /// `discard`
    Discard,
    /// `zeroes`: write zeroes without being given them.
    Zeroes,
    /// `flush` of the write cache; pattern and bytes count for nothing.
    Flush,
}

/// In which order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// `seq`: one slot after the other, and again from the first one after the last. Each thread has its part of
    /// the slots.
    Seq,
    /// `random`: any slot at any time.
    Random,
    /// `shuffle`: each slot once at most.
    Shuffle,
}

/// The words of a `run` message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Settings {
    pub(crate) op: Op,
    pub(crate) order: Order,
    /// Of each bio.
    pub(crate) bytes: u32,
    /// Bios in all, shared out among the threads.
    pub(crate) count: u64,
    /// `depth`: bios in flight for each thread.
    pub(crate) depth: usize,
    /// `threads`
    pub(crate) threads: usize,
    /// `fua_every`: each so manieth write of a thread has FUA; none if zero.
    pub(crate) fua_every: u64,
    /// `seed` of what is random; each thread derives its own.
    pub(crate) seed: u64,
    /// `start` of the part of the device that is used, in bytes.
    pub(crate) start: u64,
    /// `length` of that part, in bytes; all that follows, unless given.
    pub(crate) length: Option<u64>,
    /// `stride`: from the beginning of a slot to that of the next one, in bytes; like `bytes` unless given.
    pub(crate) stride: u64,
    /// `gap_us`: how long a thread sleeps after each bio, in microseconds, having waited for one if all are in
    /// flight.
    pub(crate) gap_us: u64,
    /// `cpu`: where the first thread runs, each other one on the next one. Unless given, all that are online take
    /// turns.
    pub(crate) cpu: Option<u32>,
    /// `latency`: whether it is measured how long each bio takes; 1 or 0.
    pub(crate) latency: bool,
}

/// What is wrong with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wrong<'a> {
    /// There are too few words.
    Missing,
    /// The word is none of those that it may be.
    Word(&'a CStr),
    /// The word has a number that cannot be, or none.
    Number(&'a CStr),
}

impl kernel::fmt::Display for Wrong<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, word) = match self {
            Self::Missing => {
                return f.write_str("run <op> <pattern> <bytes> <count> [<key>=<n>]...")
            }
            Self::Word(word) => ("unknown word", word),
            Self::Number(word) => ("bad number", word),
        };
        write!(f, "{what}: {}", word.to_str().unwrap_or("?"))
    }
}

const MAX_DEPTH: u64 = 1024;
const MAX_THREADS: u64 = 64;
const MAX_GAP_US: u64 = 1_000_000;

/// The largest length of a bio with data, which is in one piece of memory.
const MAX_DATA: u32 = 1 << 20;

fn is_sectors(bytes: u64) -> bool {
    bytes & ((1 << SECTOR_SHIFT) - 1) == 0
}

impl Settings {
    /// Understands the words after `run`.
    pub(crate) fn parse<'a>(mut args: Args<'a>) -> Result<Self, Wrong<'a>> {
        let mut next = || args.shift().ok_or(Wrong::Missing);
        let (op, order, bytes, count) = (next()?, next()?, next()?, next()?);
        let number = |word| parse_u64(word).map_err(|_| Wrong::Number(word));

        let op = match op.to_bytes() {
            b"read" => Op::Read,
            b"write" => Op::Write,
            b"discard" => Op::Discard,
            b"zeroes" => Op::Zeroes,
            b"flush" => Op::Flush,
            _ => return Err(Wrong::Word(op)),
        };
        let order = match order.to_bytes() {
            _ if op == Op::Flush => Order::Seq,
            b"seq" => Order::Seq,
            b"random" => Order::Random,
            b"shuffle" => Order::Shuffle,
            _ => return Err(Wrong::Word(order)),
        };
        let bytes = match (op, u32::try_from(number(bytes)?)) {
            // What has no length still has a slot.
            (Op::Flush, _) => 1 << SECTOR_SHIFT,
            (_, Ok(n)) if n == 0 || !is_sectors(n.into()) => return Err(Wrong::Number(bytes)),
            (Op::Read | Op::Write, Ok(n)) if n > MAX_DATA => return Err(Wrong::Number(bytes)),
            (_, Ok(n)) => n,
            (_, Err(_)) => return Err(Wrong::Number(bytes)),
        };
        let mut this = Self {
            op,
            order,
            bytes,
            count: number(count)?,
            depth: 32,
            threads: 1,
            fua_every: 0,
            seed: 0,
            start: 0,
            length: None,
            stride: bytes.into(),
            gap_us: 0,
            cpu: None,
            latency: true,
        };
        while let Some(word) = args.shift() {
            this.set(word)?;
        }
        Ok(this)
    }

    /// Understands a `<key>=<n>`.
    fn set<'a>(&mut self, word: &'a CStr) -> Result<(), Wrong<'a>> {
        let bytes = word.to_bytes_with_nul();
        let (key, n) = bytes
            .iter()
            .position(|&b| b == b'=')
            .and_then(|at| bytes.split_at_checked(at))
            .ok_or(Wrong::Word(word))?;
        let n = n
            .get(1..)
            .and_then(|n| CStr::from_bytes_with_nul(n).ok())
            .and_then(|n| parse_u64(n).ok())
            .ok_or(Wrong::Number(word))?;
        let upto = |max| match n <= max {
            true => Ok(n),
            false => Err(Wrong::Number(word)),
        };
        let sectors = || match is_sectors(n) {
            true => Ok(n),
            false => Err(Wrong::Number(word)),
        };
        // What is limited fits its type.
        match key {
            b"depth" if n > 0 => self.depth = upto(MAX_DEPTH)? as usize,
            b"threads" if n > 0 => self.threads = upto(MAX_THREADS)? as usize,
            b"stride" if n > 0 => self.stride = sectors()?,
            b"depth" | b"threads" | b"stride" => return Err(Wrong::Number(word)),
            b"fua_every" => self.fua_every = n,
            b"seed" => self.seed = n,
            b"start" => self.start = sectors()?,
            b"length" => self.length = Some(sectors()?),
            b"gap_us" => self.gap_us = upto(MAX_GAP_US)?,
            b"cpu" => self.cpu = Some(upto(u32::MAX.into())? as u32),
            b"latency" => self.latency = upto(1)? == 1,
            _ => return Err(Wrong::Word(word)),
        }
        Ok(())
    }

    /// How many slots there are on a device of `size` bytes: places for a bio, the first one at `start`. None if the
    /// device is too small.
    pub(crate) fn slots(&self, size: u64) -> Option<u64> {
        let room = size.checked_sub(self.start)?;
        let length = self.length.unwrap_or(room);
        if length > room {
            return None;
        }
        let rest = length.checked_sub(self.bytes.into())?;
        Some(rest.checked_div(self.stride)?.saturating_add(1))
    }
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_load_settings)]
mod tests {
    use super::*;

    fn settings(stride: u64, start: u64, length: Option<u64>) -> Settings {
        Settings {
            op: Op::Read,
            order: Order::Seq,
            bytes: 4096,
            count: 1,
            depth: 1,
            threads: 1,
            fua_every: 0,
            seed: 0,
            start,
            length,
            stride,
            gap_us: 0,
            cpu: None,
            latency: true,
        }
    }

    #[test]
    fn counts_slots() {
        assert!(settings(4096, 0, None).slots(1 << 20) == Some(256));
        assert!(settings(4096, 4096, None).slots(1 << 20) == Some(255));
        assert!(settings(4096, 0, None).slots((1 << 20) - 512) == Some(255));
        assert!(settings(65536, 0, None).slots(1 << 20) == Some(16));
        assert!(settings(65536, 4096, None).slots(1 << 20) == Some(16));
        assert!(settings(65536, 0, Some(65536 + 4096)).slots(1 << 20) == Some(2));
        assert!(settings(65536, 0, Some(65536 + 3584)).slots(1 << 20) == Some(1));
        assert!(settings(512, 0, Some(4096)).slots(1 << 20) == Some(1));
    }

    #[test]
    fn keeps_to_the_device() {
        assert!(settings(4096, 0, None).slots(3584).is_none());
        assert!(settings(4096, 1 << 20, None).slots(1 << 20).is_none());
        assert!(settings(4096, 2 << 20, None).slots(1 << 20).is_none());
        assert!(settings(4096, 4096, Some(1 << 20)).slots(1 << 20).is_none());
        assert!(settings(4096, 0, Some(0)).slots(1 << 20).is_none());
    }

    #[test]
    fn understands_keys() {
        let mut it = settings(4096, 0, None);
        for word in [
            c"depth=7",
            c"threads=2",
            c"stride=65536",
            c"start=512",
            c"length=1024",
            c"seed=9",
            c"gap_us=5",
            c"cpu=1",
            c"latency=0",
            c"fua_every=16",
        ] {
            assert!(it.set(word).is_ok());
        }
        let want = Settings {
            depth: 7,
            threads: 2,
            fua_every: 16,
            seed: 9,
            start: 512,
            length: Some(1024),
            stride: 65536,
            gap_us: 5,
            cpu: Some(1),
            latency: false,
            ..settings(4096, 0, None)
        };
        assert!(it == want);
    }

    #[test]
    fn refuses_what_cannot_be() {
        let mut it = settings(4096, 0, None);
        for word in [
            c"depth=0",
            c"depth=1025",
            c"threads=0",
            c"threads=65",
            c"stride=0",
            c"stride=100",
            c"start=1",
            c"length=1",
            c"gap_us=1000001",
            c"cpu=4294967296",
            c"latency=2",
            c"seed=",
            c"seed=x",
            c"seed=-1",
        ] {
            assert!(it.set(word) == Err(Wrong::Number(word)));
        }
        for word in [c"depth", c"", c"=1", c"speed=1", c"Depth=1"] {
            assert!(it.set(word) == Err(Wrong::Word(word)));
        }
        assert!(it == settings(4096, 0, None));
    }
}
