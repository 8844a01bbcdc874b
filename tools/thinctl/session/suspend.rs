// SPDX-License-Identifier: GPL-2.0

//! Devices that are suspended for a moment, by whoever has the turn with their volume.

use std::{
    thread,
    time::{
        Duration,
        Instant, //
    },
};

use devicemapper::Device;

use super::Session;
use crate::{
    backing,
    dm::Info,
    error::{
        Error,
        Result, //
    },
    guard::Guard,
    journal::{
        Entry,
        Journal, //
    },
    memory,
    pool::ActiveVolume,
    quiet,
    signals,
    tell::tell,
    turn::Turn, //
};

/// How long to wait until a guard has resumed what was suspended by who was killed.
const GUARD_PATIENCE: Duration = Duration::from_secs(60);

/// How long to try to resume a device.
const RESUME_PATIENCE: Duration = Duration::from_secs(5);

/// How often to look for devices of a volume that are not suspended yet.
const SUSPEND_TRIES: u32 = 4;

impl Session {
    /// Lets all that users of a volume have written reach it: its devices are suspended for a moment.
    pub fn settle(&self, id: u32) -> Result {
        self.quiesced(id, || Ok(()))
    }

    /// Waits for the turn with a volume; nobody else suspends or replaces it until it is dropped.
    pub fn turn(&self, id: u32) -> Result<Turn> {
        Turn::take(&self.run, &self.pool, id, || {
            // What could not be resumed before is tried again: nobody else will as long as this process lives.
            for entry in self.suspended.all() {
                self.resume(&entry)?;
            }
            // Who had it before may have been killed. What it has suspended is resumed by its guard, maybe just now.
            let begun = Instant::now();
            loop {
                Journal::recover(&self.dm, &self.pool, &self.run)?;
                let active = self.active(id)?;
                let infos: Vec<Info> = active.into_iter().map(|v| v.info).collect();
                if !Journal::any_suspends(&self.run, &infos)? {
                    return Ok(());
                }
                // What this process could not take off its own list.
                self.suspended.save()?;
                if begun.elapsed() >= GUARD_PATIENCE {
                    return Err(Error::Busy(format!(
                        "another thinctl has suspended volume {id} of pool {}",
                        self.pool.name
                    )));
                }
                signals::check()?;
                thread::sleep(Duration::from_millis(20));
            }
        })
    }

    /// Runs `action` while all devices of a volume are suspended. It must write nothing but to devices. An error if somebody
    /// has resumed one meanwhile: what was written to the volume then may have got into what it shared by `action`.
    pub(super) fn quiesced<X>(&self, id: u32, action: impl FnOnce() -> Result<X>) -> Result<X> {
        let _turn = self.turn(id)?;
        let mut suspended = Vec::new();
        let result = self
            .suspend_all(id, &mut suspended)
            .and_then(|()| action())
            .and_then(|done| self.check_suspended(id).map(|()| done));
        let mut resumed = Ok(());
        for entry in suspended.iter().rev() {
            resumed = resumed.and(self.resume(entry));
        }
        let result = result?;
        resumed?;
        Ok(result)
    }

    fn check_suspended(&self, id: u32) -> Result {
        let active = self.active(id)?;
        // What is read-only is not written to by whoever has just activated it.
        let runs = |info: &Info| !info.suspended && !info.read_only;
        match active.iter().find(|volume| runs(&volume.info)) {
            None => Ok(()),
            Some(volume) => Err(Error::Busy(format!(
                "somebody else has activated or resumed {}, which was to stay suspended for a moment",
                volume.info.name
            ))),
        }
    }

    /// Suspends all devices of a volume that are not, and adds them to `suspended`. When it returns, it has just seen that
    /// all are.
    fn suspend_all(&self, id: u32, suspended: &mut Vec<Entry>) -> Result {
        for _ in 0..SUSPEND_TRIES {
            let mut running = self.active(id)?;
            running.retain(|volume| !volume.info.suspended);
            // A device may have it more than once.
            running.dedup_by(|one, other| one.info.name == other.info.name);
            if running.is_empty() {
                return Ok(());
            }
            for volume in running {
                suspended.push(self.suspend(&volume)?);
            }
        }
        Err(Error::Busy(format!(
            "somebody else activates or resumes volume {id} of pool {} again and again",
            self.pool.name
        )))
    }

    /// Suspends a device until [`resume`](Self::resume), or the end of this process. For whoever has the
    /// [turn](Self::turn).
    pub fn suspend(&self, volume: &ActiveVolume) -> Result<Entry> {
        let name = &volume.info.name;
        self.start_guard()?;
        let run = self.run.path("");
        if backing::lies_on(&run, volume.info.device)? {
            return Err(Error::Refused(format!(
                "{} lies on {name}, which must be suspended: see --run",
                run.display()
            )));
        }
        // The guard has taken its time to start.
        let info = self.dm.info(name)?;
        let Some(info) = info.filter(|now| now.device == volume.info.device && !now.suspended)
        else {
            return Err(Error::Busy(format!(
                "somebody else has just removed, renamed or suspended {name}"
            )));
        };
        check_no_other_table(&info)?;
        // It would wait for writes that wait for room, and whoever makes room would wait for it.
        self.pool.check_room(&self.dm)?;
        quiet::begin();
        let suspended = self.suspended.suspend(&info);
        let (entry, number) = suspended.inspect_err(|_| quiet::end())?;
        self.held.set(self.held.get().saturating_add(1));
        if number == info.device {
            return Ok(entry);
        }
        self.resume(&entry)?;
        Err(Error::Busy(format!(
            "somebody else has just removed or renamed {name}"
        )))
    }

    /// Has a suspended device resumed after so long, see [`Guard::limit`]; or not any more.
    pub fn limit_suspension(&self, limit: Option<(Device, Duration)>) -> Result {
        match self.guard.borrow_mut().as_mut() {
            Some(guard) => guard.limit(limit),
            None => Ok(()),
        }
    }

    fn start_guard(&self) -> Result {
        let mut guard = self.guard.borrow_mut();
        if guard.as_mut().is_some_and(Guard::is_alive) {
            return Ok(());
        }
        memory::lock()?;
        let [home, run] = &self.roots;
        *guard = Some(Guard::start(
            home,
            run,
            &self.pool.name,
            self.journal.name(),
        )?);
        Ok(())
    }

    /// Does something to a device that is suspended; this process does not end meanwhile, which would resume it.
    pub fn holding_suspended<X>(&self, action: impl FnOnce() -> Result<X>) -> Result<X> {
        self.suspended.holding(action)
    }

    /// Resumes what [`suspend`](Self::suspend) has suspended.
    pub fn resume(&self, entry: &Entry) -> Result {
        let begun = Instant::now();
        let resumed = loop {
            let resumed = self.suspended.undo(entry);
            if !self.suspended.has(entry) {
                break resumed;
            }
            if begun.elapsed() >= RESUME_PATIENCE {
                return resumed;
            }
            thread::sleep(Duration::from_millis(50));
        };
        self.held.set(self.held.get().saturating_sub(1));
        quiet::end();
        if let Err(e) = resumed {
            // It is resumed, but could not be taken off the list, which is tried again before the next one is suspended.
            tell(e);
        }
        Ok(())
    }

    /// Whether a device is left that could not be resumed.
    pub fn has_suspended(&self) -> bool {
        self.held.get() > 0
    }

    /// Leaves the devices that this process cannot resume to its guard, and waits a little for that; whether none is suspended
    /// any more. If one is, all else that is to be undone is the guard's, too: the files for that may lie on the device.
    ///
    /// The guard begins once the lock of the notes and the pipe are closed, in this order. Between the two, whichever process
    /// comes by may do its work. This one does not touch the notes any more, and looks at the devices by their numbers.
    pub(super) fn leave_suspended(&self) -> bool {
        let held = self.held.take();
        let left = self.suspended.leave();
        let numbers: Vec<Device> = left.iter().map(|(_, number)| *number).collect();
        // Some may be resumed and still be noted.
        let counted = u32::try_from(numbers.len()).unwrap_or(held).min(held);
        for _ in counted..held {
            quiet::end();
        }
        if numbers.is_empty() {
            return true;
        }
        quiet::leave(&numbers, counted);
        self.guard.take();
        let begun = Instant::now();
        while !quiet::look() {
            if begun.elapsed() >= RESUME_PATIENCE {
                for (name, _) in left {
                    tell(format_args!(
                        "{name} could not be resumed; a process in the background goes on trying, and so does the next run"
                    ));
                }
                return false;
            }
            thread::sleep(Duration::from_millis(50));
        }
        true
    }
}

/// Gives an error if resuming a device would give it another table.
pub fn check_no_other_table(info: &Info) -> Result {
    let name = &info.name;
    match info.has_other_table {
        false => Ok(()),
        true => Err(Error::Refused(format!(
            "somebody has loaded another table for {name}: see \"dmsetup table --inactive {name}\"; \"dmsetup clear {name}\" \
             takes it away"
        ))),
    }
}
