// SPDX-License-Identifier: GPL-2.0

//! What each thread of a run does.

use dm::{
    kthread::{
        online_cpus,
        Job, //
    },
    own_bio::{
        now_ns,
        Ended,
        OwnBios,
        Transfer, //
    },
    Dev,
    Sector,
    SECTOR_SHIFT, //
};
use kernel::{
    cpu::CpuId,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

use crate::{
    histogram::Histogram,
    pattern::{
        part,
        Pattern, //
    },
    report::Report,
    settings::{
        Op,
        Settings, //
    },
};

/// What one thread does; `TIMED` says whether it is measured how long each bio takes.
///
/// It shares no cache line with that of another thread.
#[repr(align(64))]
pub(crate) struct Thread<'a, const TIMED: bool> {
    bios: OwnBios<TIMED>,
    pattern: Pattern,
    /// How many bios it submits.
    count: u64,
    start: Sector,
    stride: Sector,
    fua_every: u64,
    /// Writes until the next one with FUA.
    fua_in: u64,
    gap: Option<Delta>,
    cpu: CpuId,
    stop: &'a Atomic<bool>,
    pub(crate) report: Report,
}

impl<'a, const TIMED: bool> Thread<'a, TIMED> {
    /// The thread `i` of a run on `slots` slots of `dev`, which ends early once `stop` is set.
    ///
    /// EINVAL if there are too few slots or no such processor; ENOMEM.
    pub(crate) fn new(
        dev: &Dev,
        transfer: &Transfer,
        settings: &Settings,
        slots: u64,
        i: usize,
        stop: &'a Atomic<bool>,
    ) -> Result<Self> {
        let (from, to) = part(settings.count, i, settings.threads);
        // A flush goes nowhere.
        let (start, stride) = match settings.op {
            Op::Flush => (0, 0),
            _ => (settings.start, settings.stride),
        };
        Ok(Self {
            pattern: Pattern::new(settings, slots, i).ok_or(EINVAL)?,
            cpu: cpu(settings.cpu, i)?,
            count: to.saturating_sub(from),
            start: start >> SECTOR_SHIFT,
            stride: stride >> SECTOR_SHIFT,
            fua_every: settings.fua_every,
            fua_in: settings.fua_every,
            // It is limited to a second.
            gap: (settings.gap_us != 0).then(|| Delta::from_micros(settings.gap_us as i64)),
            stop,
            report: Report::new(Histogram::new()?),
            bios: OwnBios::new(dev, settings.depth, transfer)?,
        })
    }

    /// Whether the next write has FUA.
    #[inline]
    fn fua(&mut self) -> bool {
        if self.fua_every == 0 {
            return false;
        }
        self.fua_in = self.fua_in.wrapping_sub(1);
        if self.fua_in != 0 {
            return false;
        }
        self.fua_in = self.fua_every;
        true
    }

    #[inline]
    fn note(&mut self, ended: Ended) {
        self.report.ios = self.report.ios.wrapping_add(1);
        if !ended.status.is_ok() {
            self.report.errors = self.report.errors.wrapping_add(1);
        }
        if TIMED {
            self.report.times.add(ended.ns);
        }
    }

    #[cold]
    fn rest(&mut self, gap: Delta) {
        if self.bios.is_full() {
            if let Some(ended) = self.bios.finish() {
                self.note(ended);
            }
        }
        fsleep(gap);
    }
}

/// The processor for the thread `i`, if the first one has `first`; EINVAL if it is not online.
fn cpu(first: Option<u32>, i: usize) -> Result<CpuId> {
    match first {
        Some(first) => {
            let wanted = u32::try_from(i).ok().and_then(|i| first.checked_add(i));
            online_cpus().find(|cpu| Some(cpu.as_u32()) == wanted)
        }
        None => {
            let n = online_cpus().count();
            i.checked_rem(n).and_then(|i| online_cpus().nth(i))
        }
    }
    .ok_or(EINVAL)
}

impl<const TIMED: bool> Job for Thread<'_, TIMED> {
    fn cpu(&self) -> Option<CpuId> {
        Some(self.cpu)
    }

    fn run(&mut self) {
        self.report.first = now_ns();
        for _ in 0..self.count {
            if self.stop.load(Relaxed) {
                break;
            }
            // The device has that many sectors, so this does not wrap around.
            let sector = self
                .start
                .wrapping_add(self.pattern.next().wrapping_mul(self.stride));
            let fua = self.fua();
            if let Some(ended) = self.bios.submit(sector, fua) {
                self.note(ended);
            }
            if let Some(gap) = self.gap {
                self.rest(gap);
            }
        }
        while let Some(ended) = self.bios.finish() {
            self.note(ended);
        }
        self.report.last = now_ns();
    }
}
