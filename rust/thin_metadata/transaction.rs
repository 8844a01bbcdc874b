// SPDX-License-Identifier: GPL-2.0

//! Transactions: what may be changed when, commits and aborts.

use persistent_data::{
    block_manager::BlockManager,
    btree::Plain,
    space_map::SmRoot, //
};

use crate::{
    device::Device,
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
    /// The next commit's metadata are on the device, all but the superblock, which will hold these roots.
    Prepared {
        data_sm: SmRoot,
        metadata_sm: SmRoot,
    },
    /// A change has failed half-way. Only an abort helps.
    Undefined,
    /// An abort has failed.
    Failed,
}

impl<B: BlockManager> Metadata<B> {
    /// Writes what the next superblock will refer to. Gives whether there is anything to commit; if so, the
    /// next thing to do, after the flush of the data device, is [`commit`](Self::commit).
    pub fn prepare_commit(&mut self) -> Result<bool> {
        match self.state {
            State::Prepared { .. } => return Ok(true),
            State::Open if !self.dirty => {
                // All that a commit would do: no block was handed out yet.
                self.data_sm.look_again()?;
                return Ok(false);
            }
            _ => self.check_change()?,
        }
        self.change(|md| {
            for device in md.devices.iter().filter(|device| device.changed) {
                md.details.insert(
                    &mut md.tm.tx(&md.bm),
                    &mut Plain::new(),
                    &[device.id.key()],
                    device.details(),
                )?;
            }
            md.data_sm.commit(&mut md.tm.tx(&md.bm))?;
            let data_sm = md.data_sm.root();
            let metadata_sm = md.tm.pre_commit(&md.bm)?;
            md.state = State::Prepared {
                data_sm,
                metadata_sm,
            };
            Ok(())
        })?;
        Ok(true)
    }

    /// Makes all changes permanent: writes the superblock, after all else if
    /// [`prepare_commit`](Self::prepare_commit) has not done so.
    ///
    /// The caller has flushed the data device since the last mapping was inserted. Nothing is written if
    /// there are no changes.
    pub fn commit(&mut self) -> Result {
        if !self.prepare_commit()? {
            return Ok(());
        }
        let State::Prepared {
            data_sm,
            metadata_sm,
        } = core::mem::replace(&mut self.state, State::Undefined)
        else {
            return Err(Error::NeedsAbort);
        };

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
        self.unstable = true;
        self.tm.commit(&self.bm, guard)?;
        self.unstable = false;

        for device in self.devices.iter_mut() {
            device.changed = false;
        }
        self.devices.retain(|device| device.open_count > 0);
        self.state = State::Open;
        self.dirty = false;
        Ok(())
    }

    /// Commits, and calls `flush_data`, which flushes the data device, when the time has come for it. It is
    /// not called if there is nothing to commit.
    ///
    /// If `flush_data` fails, the commit stays prepared: it can be tried again, or aborted.
    pub fn commit_with(&mut self, flush_data: impl FnOnce() -> Result) -> Result {
        if self.prepare_commit()? {
            flush_data()?;
            self.commit()?;
        }
        Ok(())
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

        self.devices.retain(|device| device.open_count > 0);
        for device in self.devices.iter_mut().filter(|device| device.changed) {
            let open_count = device.open_count;
            *device = match loaded.details.lookup(&self.bm, &[device.id.key()])? {
                Some(details) => Device {
                    open_count,
                    aborted: true,
                    ..Device::existing(device.id, &details)
                },
                None => Device {
                    changed: false,
                    aborted: true,
                    gone: true,
                    ..*device
                },
            };
        }

        self.tm = loaded.tm;
        self.data_limit = loaded.data_sm.nr_blocks();
        self.data_sm = loaded.data_sm;
        self.mappings = loaded.mappings;
        self.details = loaded.details;
        self.held_root = loaded.held_root;
        self.time = loaded.time;
        self.transaction_id = loaded.transaction_id;
        // That a check is needed stays true, even if it could not be written.
        self.flags = loaded.flags | (self.flags & FLAG_NEEDS_CHECK);
        if let Some(blocks) = self.threshold {
            self.tm.set_threshold(blocks);
        }
        self.set_reserve();
        self.state = State::Open;
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
        match self.state {
            State::Open | State::Prepared { .. } if !self.bm.is_read_only() => {
                self.commit_with(flush_data)
            }
            _ => Ok(()),
        }
    }

    /// Whether there is anything to commit.
    pub fn needs_commit(&self) -> bool {
        self.dirty
    }

    /// Whether a change has failed and nothing works until an [`abort`](Self::abort).
    pub fn needs_abort(&self) -> bool {
        matches!(self.state, State::Undefined)
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
        match self.state {
            State::Failed => Err(Error::Failed),
            State::Undefined => Err(Error::NeedsAbort),
            State::Open | State::Prepared { .. } => Ok(()),
        }
    }

    pub(crate) fn check_change(&self) -> Result {
        self.check_read()?;
        if matches!(self.state, State::Prepared { .. }) {
            return Err(Error::Prepared);
        }
        if self.bm.is_read_only() {
            return Err(Error::ReadOnly);
        }
        Ok(())
    }

    /// Makes a change, whose failure leaves the transaction undefined.
    pub(crate) fn change<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.unstable {
            // An abort has found a superblock that a failed commit wrote. What that commit freed is still in
            // use if a crash takes the superblock away, so it must be stable before anything is changed.
            self.bm.flush()?;
            self.unstable = false;
        }
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
