// SPDX-License-Identifier: GPL-2.0

//! The `order` target: passes everything on to a device, and numbers the flushes and FUA writes that come back.
//!
//! ```text
//! order <device>
//! ```
//!
//! All devices of that kind count together. dm-log-writes logs each device's flushes in their order; put on top of it, this
//! target tells which of two devices' flushes was the earlier.
//!
//! A device gets one flush at a time. dm-log-writes takes a write for covered by the first flush that comes after the write's
//! end, and logs it when that one ends. Another flush that came later, and overtook it, would end before what it makes stable
//! is in the log.
//!
//! The message
//!
//! ```text
//! numbers <n>
//! ```
//!
//! replies with the numbers of this device, from the n-th on, as many as there is room for.

use core::fmt::{
    self,
    Write as _, //
};

use dm::{
    Args,
    Bio,
    BlkStatus,
    Ctr,
    Dev,
    EachDevice,
    EndIo,
    Features,
    Map,
    Message,
    Mode,
    Output,
    StatusFlags,
    StatusKind,
    Stop,
    Target, //
};
use kernel::{
    prelude::*,
    str::CStr,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Relaxed,
        Release, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

use crate::DmLoad;

/// How many a device can number.
const MOST: usize = 1 << 17;

/// How many a reply has.
const REPLY: usize = 64;

/// How long a flush waits before it looks again whether the one before it has ended.
const PATIENCE: Delta = Delta::from_micros(100);

/// How many there were on all devices.
static ALL: Atomic<u32> = Atomic::new(0);

/// A table of the target.
pub(crate) struct OrderTarget {
    dev: Dev,
    len: u64,
    /// Whether a flush is on its way.
    flushing: Atomic<bool>,
    /// How many there were on this device, also beyond [`MOST`].
    count: Atomic<u32>,
    /// Their numbers.
    numbers: KVVec<Atomic<u32>>,
}

#[vtable]
impl Target for OrderTarget {
    const NAME: &'static CStr = c"order";
    const VERSION: [u32; 3] = [1, 0, 0];
    const FEATURES: Features = Features::NONE;
    type Module = DmLoad;
    type PerBio = ();

    fn ctr(ctr: &mut Ctr<'_>, args: Args<'_>) -> Result<Pin<KBox<Self>>> {
        let (1, Some(path)) = (args.len(), args.get(0)) else {
            return Err(ctr.error(c"Invalid argument count", EINVAL));
        };
        let dev = ctr
            .get_device(path, Mode::READ_WRITE)
            .map_err(|e| ctr.error(c"Error opening device", e))?;
        ctr.set_num_flush_bios(1);
        ctr.set_num_discard_bios(1);
        let mut numbers = KVVec::with_capacity(MOST, GFP_KERNEL)?;
        for _ in 0..MOST {
            numbers.push(Atomic::new(0), GFP_KERNEL)?;
        }
        let len = ctr.len();
        let flushing = Atomic::new(false);
        let count = Atomic::new(0);
        Ok(KBox::pin(
            Self {
                dev,
                len,
                flushing,
                count,
                numbers,
            },
            GFP_KERNEL,
        )?)
    }

    fn map(&self, mut bio: Bio<()>) -> Map<()> {
        if bio.is_preflush() {
            // The one before it is with the device, and does not need this thread.
            while self.flushing.xchg(true, Acquire) {
                fsleep(PATIENCE);
            }
        }
        let sector = bio.sector();
        bio.remap(&self.dev, sector);
        Map::Remapped(bio)
    }

    fn end_io(&self, bio: Bio<()>, status: BlkStatus) -> EndIo<()> {
        if bio.is_write() && bio.is_flush_or_fua() {
            let number = ALL.fetch_add(1, Full);
            let index = self.count.fetch_add(1, Full);
            if let Some(slot) = self.numbers.get(index as usize) {
                slot.store(number, Relaxed);
            }
        }
        if bio.is_preflush() {
            self.flushing.store(false, Release);
        }
        EndIo::Done(bio, status)
    }

    fn message(&self, msg: &mut Message<'_>) -> Result {
        let from = {
            let mut args = msg.args();
            match args.shift() {
                Some(word) if word == c"numbers" => args.read(0, MOST as u32)?,
                _ => return Err(EINVAL),
            }
        };
        let count = (self.count.load(Relaxed) as usize).min(MOST);
        let mut reply = msg.reply();
        // There must be a reply, also without numbers.
        write!(reply, "numbers").map_err(|_| EINVAL)?;
        let known = self.numbers.get(..count).unwrap_or(&[]);
        for number in known.iter().skip(from as usize).take(REPLY) {
            write!(reply, " {}", number.load(Relaxed)).map_err(|_| EINVAL)?;
        }
        Ok(())
    }

    fn status(&self, kind: StatusKind, _flags: StatusFlags, out: &mut Output<'_>) -> fmt::Result {
        match kind {
            StatusKind::Info => write!(out, "{}", self.count.load(Relaxed)),
            StatusKind::Table => write!(out, "{}", self.dev.number()),
            StatusKind::Ima => Ok(()),
        }
    }

    fn iterate_devices(&self, each: &mut EachDevice<'_>) -> Result<(), Stop> {
        each.call(&self.dev, 0, self.len)
    }
}
