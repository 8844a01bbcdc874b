// SPDX-License-Identifier: GPL-2.0

//! Transactions: what may be changed when, commits and aborts.

use persistent_data::{
    block_manager::BlockManager,
    btree::Plain,
    platform::atomic::Relaxed,
    space_map::SmRoot, //
};

use crate::{
    device::{
        Device,
        Root, //
    },
    error::{
        Error,
        Result, //
    },
    format::{
        Superblock,
        FLAG_NEEDS_CHECK,
        SUPERBLOCK_LOCATION, //
    },
    metadata::{
        load,
        Metadata, //
    },
    superblock::{
        self,
        sm_root_bytes, //
    },
};

/// What is going on.
pub(crate) enum State {
    /// Changes are welcome.
    Open,
    /// The next commit's metadata are complete, all but the superblock, which will hold these roots.
    Prepared {
        data_sm: SmRoot,
        metadata_sm: SmRoot,
    },
    /// So is the superblock, and what it leads to is on the device. It may get there at any time.
    Written,
    /// A change has failed half-way. Only an abort helps.
    Undefined,
    /// An abort has failed.
    Failed,
}

/// That the metadata device was flushed in a certain step of a commit: what [`Metadata::flush`] gives, and the next
/// step takes.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "the next step of the commit is what the flush was for"]
pub struct Flushed {
    step: u64,
}

impl<B: BlockManager> Metadata<B> {
    /// Completes what the next superblock will refer to, in the block manager's cache. Gives whether there is
    /// anything to commit; if so, the next thing to do, in any order, is to [`flush`](Self::flush) and to flush
    /// the data device.
    ///
    /// If a commit is under way already it stays in its step.
    pub fn prepare_commit(&mut self) -> Result<bool> {
        self.check_read()?;
        match self.state {
            State::Prepared { .. } | State::Written => return Ok(true),
            State::Open if !self.dirty => {
                self.stabilise()?;
                // All else that a commit would do: no block was handed out yet.
                self.data_sm.look_again()?;
                return Ok(false);
            }
            _ => self.check_change()?,
        }
        self.change(|md| {
            for device in md.devices.changed() {
                md.details.insert(
                    &mut md.tm.tx(&md.bm),
                    &mut Plain::new(),
                    &[device.id.key()],
                    device.details(),
                )?;
            }
            md.data_sm.prepare(&mut md.tm.tx(&md.bm))?;
            let data_sm = md.data_sm.root();
            let metadata_sm = md.tm.prepare(&md.bm)?;
            md.enter_step(State::Prepared {
                data_sm,
                metadata_sm,
            });
            md.bm.start_writing();
            Ok(())
        })?;
        Ok(true)
    }

    /// Writes what [`prepare_commit`](Self::prepare_commit) or [`write_superblock`](Self::write_superblock) has
    /// completed to the metadata device, and makes it stable. Look-ups need not wait for it.
    ///
    /// If this fails, some of what was to be written may be lost, and it may not be told again. So the commit
    /// cannot go on: [`needs_abort`](Self::needs_abort) is true. Gives [`Error::NotPrepared`] if no commit is
    /// under way, and [`Error::ReadOnly`], which changes nothing, if the device is read-only.
    pub fn flush(&self) -> Result<Flushed> {
        self.check_read()?;
        if matches!(self.state, State::Open) {
            return Err(Error::NotPrepared);
        }
        match self.bm.flush() {
            Ok(()) => Ok(Flushed { step: self.step }),
            Err(e) => {
                self.note_failed_flush(e);
                Err(e.into())
            }
        }
    }

    /// Completes the superblock in the block manager's cache, from where it may get to the device at any time; the
    /// next thing to do is to [`flush`](Self::flush).
    ///
    /// The caller has flushed the data device since [`prepare_commit`](Self::prepare_commit), as well as the
    /// metadata device, which `flushed` stands for: gives [`Error::NotPrepared`] if it is of another step.
    pub fn write_superblock(&mut self, flushed: Flushed) -> Result {
        let State::Prepared {
            data_sm,
            metadata_sm,
        } = self.state
        else {
            self.check_read()?;
            return Err(Error::NotPrepared);
        };
        self.check_flushed(flushed)?;

        let mut guard = self.bm.write(SUPERBLOCK_LOCATION, &superblock::VALIDATOR)?;
        let superblock = Superblock::of_mut(&mut guard)?;
        superblock.time = self.time.into();
        superblock.data_mapping_root = self.mappings.root().into();
        superblock.device_details_root = self.details.root().into();
        superblock.held_root = self.held_root.into();
        superblock.trans_id = self.transaction_id.into();
        superblock.flags = self.flags.into();
        superblock.data_space_map_root = sm_root_bytes(&data_sm);
        superblock.metadata_space_map_root = sm_root_bytes(&metadata_sm);
        drop(guard);
        self.unstable = true;
        self.bm.start_writing();
        self.enter_step(State::Written);
        Ok(())
    }

    /// Begins the next transaction: all changes are permanent.
    ///
    /// `flushed` is from after [`write_superblock`](Self::write_superblock): gives [`Error::NotPrepared`] if not.
    pub fn finish_commit(&mut self, flushed: Flushed) -> Result {
        self.check_read()?;
        if !matches!(self.state, State::Written) {
            return Err(Error::NotPrepared);
        }
        self.check_flushed(flushed)?;
        self.unstable = false;
        if let Err(e) = self.data_sm.finish().and_then(|()| self.tm.finish()) {
            self.enter_step(State::Undefined);
            return Err(e.into());
        }

        self.devices.set_committed();
        self.released = false;
        self.enter_step(State::Open);
        self.dirty = false;
        Ok(())
    }

    /// Makes all changes permanent: does all that a commit takes, or what is left of it.
    ///
    /// The caller has flushed the data device since the last mapping was inserted. Nothing is written if
    /// there are no changes.
    pub fn commit(&mut self) -> Result {
        if !self.prepare_commit()? {
            return Ok(());
        }
        if matches!(self.state, State::Prepared { .. }) {
            let flushed = self.flush()?;
            self.write_superblock(flushed)?;
        }
        let flushed = self.flush()?;
        self.finish_commit(flushed)
    }

    /// Commits, and calls `flush_data`, which flushes the data device, when the time has come for it. It is
    /// not called if there is nothing to commit.
    ///
    /// If `flush_data` fails, the commit stays prepared: it can be tried again, or aborted.
    pub fn commit_with(&mut self, flush_data: impl FnOnce() -> Result) -> Result {
        if !self.prepare_commit()? {
            return Ok(());
        }
        if matches!(self.state, State::Prepared { .. }) {
            flush_data()?;
        }
        self.commit()
    }

    /// Goes on to the next step of a commit; what was flushed before counts no more.
    fn enter_step(&mut self, state: State) {
        self.state = state;
        self.step = self.step.wrapping_add(1);
    }

    fn check_flushed(&self, flushed: Flushed) -> Result {
        self.check_read()?;
        match flushed.step == self.step {
            true => Ok(()),
            false => Err(Error::NotPrepared),
        }
    }

    /// Takes notice that the metadata device was not flushed.
    pub(crate) fn note_failed_flush(&self, e: persistent_data::Error) {
        // A block manager that is read-only does not even try.
        if self.dirty && e != persistent_data::Error::ReadOnly {
            // Whoever changes or commits anything takes the caller's lock after this.
            self.flush_failed.store(true, Relaxed);
        }
    }

    /// Gives up all changes since the last commit.
    ///
    /// Devices that are open stay so; [`thin_aborted_changes`](Self::thin_aborted_changes) tells whether they
    /// had changes. One that was created since the last commit does not exist any more, and gives
    /// [`Error::NoDevice`].
    ///
    /// If this fails, nothing but closing works any more.
    pub fn abort(&mut self) -> Result {
        self.check_not_failed()?;
        let result = self.roll_back();
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }

    fn roll_back(&mut self) -> Result {
        self.bm.reset();
        if superblock::is_unformatted(&self.bm)? {
            return Err(Error::Unformatted);
        }
        let loaded = load(&self.bm, &self.params)?;

        let bm = &self.bm;
        self.devices.roll_back(|device| {
            let details = loaded.details.lookup(bm, &[device.id.key()])?;
            Ok(match details {
                Some(details) => Device {
                    open_count: device.open_count,
                    aborted: true,
                    ..Device::existing(device.id, &details)
                },
                None => Device {
                    aborted: true,
                    gone: true,
                    root: Root::unknown(),
                    ..*device
                },
            })
        })?;

        self.tm = loaded.tm;
        self.data_limit = loaded.data_sm.nr_blocks();
        self.data_sm = loaded.data_sm;
        self.mappings = loaded.mappings;
        self.details = loaded.details;
        self.held_root = loaded.held_root;
        self.released = false;
        let times = self.devices.iter().map(|device| device.snapshotted_time);
        self.time = times.fold(loaded.time, u32::max);
        self.transaction_id = loaded.transaction_id;
        // That a check is needed stays true, even if it could not be written.
        self.flags = loaded.flags | (self.flags & FLAG_NEEDS_CHECK);
        if let Some(blocks) = self.threshold {
            self.tm.set_threshold(blocks);
        }
        self.set_reserve();
        self.enter_step(State::Open);
        self.flush_failed.store(false, Relaxed);
        self.dirty = false;
        Ok(())
    }

    /// Commits, unless that is not possible any more, in order to close the metadata: what remains is to drop
    /// them.
    ///
    /// Gives [`Error::DevicesOpen`] if devices are open, and nothing is committed. Any other error means that
    /// the commit failed: the metadata on the device are those of the last one.
    pub fn close(&mut self, flush_data: impl FnOnce() -> Result) -> Result {
        let open = self
            .devices
            .iter()
            .filter(|device| device.open_count > 0)
            .count();
        if open > 0 {
            return Err(Error::DevicesOpen(open));
        }
        match self.check_read() {
            Ok(()) if !self.bm.is_read_only() => self.commit_with(flush_data),
            _ => Ok(()),
        }
    }

    /// Whether there is anything to commit.
    pub fn needs_commit(&self) -> bool {
        self.dirty
    }

    /// Whether a change or a flush has failed and nothing works until an [`abort`](Self::abort).
    pub fn needs_abort(&self) -> bool {
        match self.state {
            State::Undefined => true,
            State::Failed => false,
            State::Open | State::Prepared { .. } | State::Written => {
                self.flush_failed.load(Relaxed)
            }
        }
    }

    /// Whether an abort has failed and nothing works any more.
    pub fn is_failed(&self) -> bool {
        matches!(self.state, State::Failed)
    }

    pub(crate) fn check_not_failed(&self) -> Result {
        match self.state {
            State::Failed => Err(Error::Failed),
            _ => Ok(()),
        }
    }

    pub(crate) fn check_read(&self) -> Result {
        self.check_not_failed()?;
        match self.needs_abort() {
            true => Err(Error::NeedsAbort),
            false => Ok(()),
        }
    }

    pub(crate) fn check_change(&self) -> Result {
        self.check_read()?;
        if matches!(self.state, State::Prepared { .. } | State::Written) {
            return Err(Error::Prepared);
        }
        if self.bm.is_read_only() {
            return Err(Error::ReadOnly);
        }
        Ok(())
    }

    /// Makes the superblock that the device shows stable, if it may not be.
    ///
    /// What its commit freed is still in use if a crash takes the superblock away, so this comes before anything is
    /// changed, and before anybody writes to blocks that it maps and has that flushed. And nobody may be told that there
    /// is nothing to commit while a crash can undo what they see.
    ///
    /// Writes nothing, so it is for those as well who only read.
    pub fn stabilise(&mut self) -> Result {
        if self.unstable {
            self.bm.flush_device()?;
            self.unstable = false;
        }
        Ok(())
    }

    /// Whether a crash can take the superblock away that the device shows.
    pub fn is_unstable(&self) -> bool {
        self.unstable
    }

    /// Makes a change, whose failure leaves the transaction undefined.
    pub(crate) fn change<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.stabilise()?;
        match f(self) {
            Ok(x) => {
                self.dirty = true;
                Ok(x)
            }
            Err(Error::NoDataSpace) => Err(Error::NoDataSpace),
            Err(e) => {
                self.dirty = true;
                self.state = State::Undefined;
                Err(e)
            }
        }
    }
}
