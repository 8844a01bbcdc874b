// SPDX-License-Identifier: GPL-2.0

//! The last pass of a migration of a volume in use: it is suspended, what is left is copied, and its device gets its new table.
//!
//! Whoever uses the volume waits meanwhile, so there are two limits. What there is to copy is compared with what may be copied
//! before anything is. And the guard resumes the device when it was suspended for too long: a write to the other pool may wait
//! in the kernel for ever, and then this process cannot even be killed. What may happen between the steps:
//!
//! - Before the new table is loaded, the device is resumed with its old one, whoever resumes it. Others may write to the volume
//!   then. So that it is still suspended is looked at after the copy, before the table is loaded, and after that. If it is not,
//!   the copy does not become the volume: it is what one more pass has copied.
//!   Whoever has suspended it again by then is seen by what was written to it: that is compared with what was copied.
//! - Once the table is loaded, all of the volume is in the copy, and whoever resumes the device makes the switch.
//! - A write that waits goes to the copy without its id, and has what the snapshot has. As long as it waits, this process has the
//!   lock of the migration, even if it was killed, so that no other one goes on with the copy.

use std::time::Instant;

use rustix::io::Errno;
use thin_metadata::View;

use super::{
    device,
    Run, //
};
use crate::{
    dm::Line,
    error::{
        Error,
        Result, //
    },
    migration::Stage,
    pool::ActiveVolume,
    session::create_snap,
    unchanged::is_unchanged,
    usage, //
};

impl Run<'_> {
    /// Suspends the volume's device, copies what is left, and gives the device its new table. If more is left than may be copied
    /// then, the volume goes on in its old pool, and it is said how much that is.
    pub(super) fn switch_active(&mut self, name: &str) -> Result<Option<u64>> {
        // What could have to be waited for is taken before anything is suspended,
        let (_turn, _slot) = self.from.turn_with_slot(self.id)?;
        let device = match device(self.from, self.id, self.to)? {
            Some(device) if device.info.name == name => device,
            // It was deactivated meanwhile.
            _ => return Ok(None),
        };
        if device.info.suspended {
            return Err(Error::Busy(format!("somebody else has suspended {name}")));
        }
        // and what must be known if it is cut off is written down.
        self.migration
            .plan(self.from.free_id()?, self.from.pool.stamp()?.time);
        self.enter(Stage::Switching)?;
        let begun = Instant::now();
        let entry = match self.from.suspend(&device) {
            Ok(entry) => entry,
            Err(e) => {
                // It was not taken, and what was copied is still of use.
                self.migration.copying = None;
                self.store()?;
                return Err(e);
            }
        };
        let switched = self.last_pass(&device);
        self.from.resume(&entry)?;
        // Nobody else suspends it before the turn is over. A guard that is gone resumes nothing.
        let _ = self.from.limit_suspension(None);
        let suspended = begun.elapsed();
        self.result.suspended += suspended.as_secs_f64();
        self.to.note_stamp();
        match switched {
            Ok(None) => {
                self.result.switched.push(name.to_owned());
                Ok(None)
            }
            Ok(left) => {
                // If it is cut off before that is noted, it is seen that there is no copy.
                self.enter(Stage::Copying)?;
                Ok(left)
            }
            Err(e) => {
                self.store()?;
                Err(match e {
                    Error::Busy(_) if suspended >= self.longest => Error::Busy(format!(
                        "{name} was suspended for {} s and had to go on, see --suspended-seconds; the same command goes on with the migration",
                        self.longest.as_secs()
                    )),
                    e => e,
                })
            }
        }
    }

    /// The error of a volume of which more changes again and again than may be copied while it is suspended.
    pub(super) fn too_much(&self, name: &str, left: u64) -> Error {
        Error::Busy(format!(
            "after {} passes, {} of {name} are still to be copied, and while it is suspended, {} may be: see --suspended-bytes, \
             or deactivate it; what was copied is kept, and the same command goes on",
            self.result.passes,
            usage::bytes(left),
            usage::bytes(self.most)
        ))
    }

    /// What is done while the volume is suspended.
    fn last_pass(&mut self, device: &ActiveVolume) -> Result<Option<u64>> {
        let Some(snapshot) = self.migration.copying else {
            return Ok(None);
        };
        let begun = Instant::now();
        let limit = Some((device.info.device, self.longest));
        let limited = self.from.limit_suspension(limit);
        let asked = limited.and_then(|()| self.check_suspended(device));
        let taken = match &asked {
            Ok(()) => self.from.message(&create_snap(snapshot, self.id)),
            Err(_) => Ok(()),
        };
        let is_refused = taken
            .as_ref()
            .is_err_and(|e| matches!(e.errno(), Some(Errno::EXIST | Errno::NODATA)));
        if asked.is_err() || is_refused {
            // If there is one of this id, it is another one. A commit that failed may have left this one.
            self.migration.copying = None;
        }
        asked.and(taken)?;
        let left = self.copy(snapshot, Some(self.most))?;
        if left > self.most {
            return Ok(Some(left));
        }
        self.result.copied_suspended = left;
        // The guard may have resumed it, and others have written to it, while this process waited for what it wrote.
        self.check_in_time(device, begun)?;
        // Whoever has resumed it meanwhile, and suspended it again, was not seen.
        let name = &device.info.name;
        let is_unchanged = |view: &View<'_, _>| is_unchanged(view, snapshot, self.id);
        if !self.from.glance(is_unchanged)? {
            return Err(Error::Busy(format!(
                "somebody else has resumed {name}, which was written to"
            )));
        }
        self.to
            .snapshot_inactive_as(self.migration.to_id, self.migration.temporary)?;
        let line = Line {
            start: 0,
            sectors: device.size / thin_metadata::format::SECTOR_SIZE,
            target: "thin".to_owned(),
            words: self
                .to
                .pool
                .thin_words_over(self.migration.to_id, device.origin),
        };
        self.from.holding_suspended(|| {
            self.check_in_time(device, begun)?;
            let loaded = self.from.dm.load(name, &line, device.info.read_only);
            // Whoever has resumed it before it was loaded may have let others write to what is left behind.
            let result = loaded.and_then(|()| self.check_in_time(device, begun));
            match result {
                Ok(()) => Ok(()),
                // The first error is the one that tells, unless somebody has resumed the device with the table already.
                Err(e) => self.from.dm.clear(name).and_then(|()| {
                    match self.from.dm.table(name)? == [line] {
                        true => Ok(()),
                        false => Err(e),
                    }
                }),
            }
        })?;
        Ok(None)
    }

    /// As [`check_suspended`](Self::check_suspended). The guard may have resumed the device as soon as it was suspended for too
    /// long since it `begun`, and somebody else have suspended it after that.
    fn check_in_time(&self, device: &ActiveVolume, begun: Instant) -> Result {
        self.check_suspended(device)?;
        match begun.elapsed() < self.longest {
            true => Ok(()),
            false => Err(Error::Busy(format!(
                "{} was suspended for too long",
                device.info.name
            ))),
        }
    }

    /// Gives an error unless this device is the volume's only one, is suspended, and has the table that it had.
    fn check_suspended(&self, expected: &ActiveVolume) -> Result {
        match device(self.from, self.id, self.to)? {
            Some(found)
                if found.info.suspended
                    && found.info.name == expected.info.name
                    && found.info.read_only == expected.info.read_only
                    && (found.size, found.origin) == (expected.size, expected.origin) =>
            {
                Ok(())
            }
            _ => Err(Error::Busy(format!(
                "somebody else has changed or resumed {}",
                expected.info.name
            ))),
        }
    }
}
