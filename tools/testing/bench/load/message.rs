// SPDX-License-Identifier: GPL-2.0

//! The messages of the target.

use core::fmt::Write as _;

use dm::{
    kthread::run_all,
    own_bio::{
        Buffer,
        Transfer, //
    },
    Message,
    SECTOR_SHIFT, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
};

use crate::{
    histogram::Histogram,
    report::Report,
    settings::{
        Op,
        Settings, //
    },
    target::LoadTarget,
    thread::Thread,
    LOG_PREFIX, //
};

/// What is written: every byte.
const FILL: u8 = 0x5a;

/// Does what a message says, and replies.
///
/// EINVAL for unknown words, wrong numbers and what the device has no room for, of which the log tells; EINTR if a
/// signal ends the run early; ENOMEM.
pub(crate) fn handle(target: &LoadTarget, msg: &mut Message<'_>) -> Result {
    let settings = {
        let mut args = msg.args();
        let parsed = match args.shift() {
            Some(word) if word == c"run" => Settings::parse(args),
            Some(word) => Err(crate::settings::Wrong::Word(word)),
            None => Err(crate::settings::Wrong::Missing),
        };
        parsed.map_err(|wrong| {
            dm::log::err!(LOG_PREFIX, "{}: {wrong}", target.ti.name());
            EINVAL
        })?
    };
    let report = if settings.latency {
        run::<true>(target, &settings)
    } else {
        run::<false>(target, &settings)
    }?;
    write!(msg.reply(), "{report}").map_err(|_| EINVAL)
}

fn run<const TIMED: bool>(target: &LoadTarget, settings: &Settings) -> Result<Report> {
    let complain = |what: &str| {
        let (name, dev) = (target.ti.name(), target.dev.name());
        dm::log::err!(LOG_PREFIX, "{name}: {dev} {what}");
        EINVAL
    };
    let size = target.dev.sectors() << SECTOR_SHIFT;
    let block = u64::from(target.dev.limits().logical_block_size());
    let lengths = [settings.bytes.into(), settings.start, settings.stride];
    if settings.op != Op::Flush && lengths.iter().any(|n| n % block.max(1) != 0) {
        return Err(complain("has larger blocks than that"));
    }
    let slots = settings
        .slots(size)
        .ok_or_else(|| complain("has no room for that"))?;

    let transfer = match settings.op {
        Op::Read => Transfer::Read(settings.bytes),
        Op::Write => {
            let data = Buffer::new(settings.bytes, FILL)?;
            Transfer::Write(Arc::new(data, GFP_KERNEL)?)
        }
        Op::Discard => Transfer::Discard(settings.bytes),
        Op::Zeroes => Transfer::WriteZeroes(settings.bytes),
        Op::Flush => Transfer::Flush,
    };
    let stop = Atomic::new(false);
    let mut threads = KVec::with_capacity(settings.threads, GFP_KERNEL)?;
    for i in 0..settings.threads {
        let thread = Thread::<TIMED>::new(&target.dev, &transfer, settings, slots, i, &stop);
        let thread = thread.inspect_err(|&e| {
            if e == EINVAL {
                complain("has too few slots, or the machine too few processors");
            }
        })?;
        threads.push(thread, GFP_KERNEL)?;
    }
    run_all(c"dm-load", &mut threads, || stop.store(true, Relaxed))?;

    let mut report = Report::new(Histogram::new()?);
    for thread in &threads {
        report.merge(&thread.report);
    }
    Ok(report)
}
