// SPDX-License-Identifier: GPL-2.0

//! Creation, opening and deletion of thin devices.

use zerocopy::byteorder::little_endian::U64;

use persistent_data::{
    block_manager::BlockManager,
    btree::{
        Plain,
        Subtree, //
    },
    transaction::Transaction, //
};

use crate::{
    data_blocks::{
        DataBlocks,
        Freed, //
    },
    device::{
        Device,
        DeviceId,
        ThinHandle, //
    },
    error::{
        Error,
        Result, //
    },
    format::{
        DeviceTree,
        MappingTree,
        TopTree,
        MAX_TIME, //
    },
    metadata::Metadata, //
};

impl<B: BlockManager> Metadata<B> {
    /// Creates a device without mappings.
    ///
    /// Gives [`Error::DeviceExists`] if there is one of this id.
    pub fn create_thin(&mut self, id: DeviceId) -> Result {
        self.check_change()?;
        self.check_unused(id)?;
        self.devices.reserve()?;

        self.change(|md| {
            let tree = DeviceTree::empty(&mut md.tm.tx(&md.bm))?;
            md.insert_tree(id, tree.root())?;
            md.devices
                .add(Device::new(id, tree.root(), md.transaction_id, md.time))?;
            Ok(())
        })
    }

    /// Creates a device with the mappings of `origin`.
    ///
    /// If `origin` is in use, the caller must have stopped all changes of it, as well as all writes to its
    /// blocks.
    ///
    /// Gives [`Error::DeviceExists`] if there is a device `id`, and [`Error::NoDevice`] if there is no
    /// `origin`.
    pub fn create_snap(&mut self, id: DeviceId, origin: DeviceId) -> Result {
        self.check_change()?;
        self.check_unused(id)?;
        let root = self
            .lookup_root(&self.bm, origin)?
            .ok_or(Error::NoDevice(origin))?;
        let root_end = root
            .checked_add(1)
            .ok_or(persistent_data::Error::OutOfBounds(root))?;
        // A device that is neither open nor changed must not stay: what may fail without an abort comes before.
        self.stabilise()?;
        let origin_slot = self.find_or_load(origin)?;
        if self.time >= MAX_TIME {
            self.devices.forget_unused(origin_slot);
            return Err(Error::EndOfTime);
        }
        let time = self.time + 1;

        self.change(|md| {
            // The snapshot is one more owner of the origin's tree.
            md.tm.tx(&md.bm).inc(root..root_end)?;
            md.insert_tree(id, root)?;

            let mapped_blocks = md.devices.slot(origin_slot)?.mapped_blocks;
            md.devices.add(Device {
                mapped_blocks,
                ..Device::new(id, root, md.transaction_id, time)
            })?;
            // Nothing fails after this: an abort takes a device that was changed for one that has lost something.
            md.devices.change(origin_slot)?.snapshotted_time = time;
            md.time = time;
            Ok(())
        })
    }

    /// Deletes a device and its mappings. `freed` is told of the data blocks that nothing refers to any more,
    /// all of which count as [`maybe_shared`](Freed::maybe_shared).
    ///
    /// Gives [`Error::NoDevice`] if there is none of this id, and [`Error::DeviceOpen`] if it is open.
    pub fn delete_thin(&mut self, id: DeviceId, freed: &mut dyn FnMut(Freed)) -> Result {
        self.check_change()?;
        let known = self.devices.find(id);
        if let Some(slot) = known {
            if self.devices.slot(slot)?.open_count > 0 {
                return Err(Error::DeviceOpen(id));
            }
        }
        let key = [id.key()];
        let has_details = self.details.lookup(&self.bm, &key)?.is_some();
        if known.is_none() && !has_details {
            return Err(Error::NoDevice(id));
        }

        self.change(|md| {
            if let Some(slot) = known {
                md.devices.forget(slot);
            }
            let tx = &mut md.tm.tx(&md.bm);
            // A device that was created since the last commit has none yet.
            if has_details {
                md.details.remove(tx, &mut Plain::new(), &key)?;
            }
            let mut data_blocks = DataBlocks::telling(&mut md.data_sm, freed, u32::MAX);
            let mut top = TopTree::from_root(md.mappings.root());
            top.remove(tx, &mut Subtree::<_, 1>(&mut data_blocks), &key)?;
            data_blocks.finish(tx)?;
            md.mappings = MappingTree::from_root(top.root());
            Ok(())
        })
    }

    /// Opens a device. It may be opened more than once, and must be closed as often.
    ///
    /// Gives [`Error::NoDevice`] if there is none of this id.
    pub fn open_thin(&mut self, id: DeviceId) -> Result<ThinHandle> {
        self.check_read()?;
        let slot = self.find_or_load(id)?;
        self.devices.open(slot)
    }

    /// Closes a device that was opened; the handle is of no more use then.
    pub fn close_thin(&mut self, thin: &ThinHandle) {
        self.devices.close(thin);
    }

    /// Whether a device was changed since the last commit.
    pub fn thin_changed_this_transaction(&self, thin: &ThinHandle) -> bool {
        matches!(self.devices.get(thin), Ok(device) if device.changed)
    }

    /// Whether any device was changed since the last commit.
    ///
    /// Other changes do not count: allocations and references of data blocks alone need no commit soon.
    pub fn changed_this_transaction(&self) -> bool {
        self.devices.any_changed()
    }

    /// Whether an abort has undone changes of a device while it was open. This stays so until it is closed.
    pub fn thin_aborted_changes(&self, thin: &ThinHandle) -> bool {
        matches!(self.devices.get(thin), Ok(device) if device.aborted)
    }

    /// Checks that there is no device `id`.
    fn check_unused(&self, id: DeviceId) -> Result {
        let known = match self.devices.find(id) {
            Some(_) => true,
            None => self.details.lookup(&self.bm, &[id.key()])?.is_some(),
        };
        if known {
            return Err(Error::DeviceExists(id));
        }
        Ok(())
    }

    /// The slot of a device that exists.
    fn find_or_load(&mut self, id: DeviceId) -> Result<usize> {
        if let Some(slot) = self.devices.find(id) {
            if self.devices.slot(slot)?.gone {
                return Err(Error::NoDevice(id));
            }
            return Ok(slot);
        }
        let details = self
            .details
            .lookup(&self.bm, &[id.key()])?
            .ok_or(Error::NoDevice(id))?;
        let device = Device::existing(id, &details);
        let snapshotted_time = device.snapshotted_time;
        if snapshotted_time > MAX_TIME {
            return Err(Error::BadTime(id));
        }
        let slot = self.devices.add(device)?;
        self.catch_up(snapshotted_time);
        Ok(slot)
    }

    /// Sees to it that a snapshot at `time` was not taken later than now: metadata that were put together by hand or by a
    /// repair may say so.
    ///
    /// New mappings would count as shared, as they are of now. And the next snapshot would set its origin's time back,
    /// and make mappings unshared that older snapshots share.
    pub(crate) fn catch_up(&mut self, time: u32) {
        self.time = self.time.max(time);
    }

    /// Enters the root of a new device's mappings into the upper level of the mapping tree.
    fn insert_tree(&mut self, id: DeviceId, root: u64) -> Result {
        let tx = &mut self.tm.tx(&self.bm);
        let mut data_blocks = DataBlocks::new(&mut self.data_sm);
        let mut top = TopTree::from_root(self.mappings.root());
        let mut subtree = Subtree::<_, 1>(&mut data_blocks);
        top.insert(tx, &mut subtree, &[id.key()], U64::new(root))?;
        data_blocks.finish(tx)?;
        self.mappings = MappingTree::from_root(top.root());
        Ok(())
    }
}
