// SPDX-License-Identifier: GPL-2.0

//! Thin devices: their ids, and what is known in memory of those that are open or changed.

use core::fmt;

use persistent_data::{
    block::BlockNr,
    platform::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        TryVec,
        Vec, //
    }, //
};

use crate::{
    error::{
        Error,
        Result, //
    },
    format::{
        DeviceDetails,
        MAX_DEVICE_ID,
        SUPERBLOCK_LOCATION, //
    },
};

/// The id of a thin device: 24 bits, chosen by the user.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeviceId(u32);

impl DeviceId {
    /// The id as the key of a tree.
    pub fn key(self) -> u64 {
        u64::from(self.0)
    }
}

impl TryFrom<u64> for DeviceId {
    type Error = Error;

    fn try_from(id: u64) -> Result<Self> {
        match u32::try_from(id) {
            Ok(small) if id <= MAX_DEVICE_ID => Ok(Self(small)),
            _ => Err(Error::BadDeviceId(id)),
        }
    }
}

impl From<DeviceId> for u64 {
    fn from(id: DeviceId) -> u64 {
        id.key()
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(CONFIG_RUST)]
impl kernel::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A device that is open in a pool: what [`Metadata::open_thin`](crate::Metadata::open_thin) gives, and
/// [`Metadata::close_thin`](crate::Metadata::close_thin) ends.
///
/// It says where the pool keeps the device's state; the state itself is the pool's. A clone is the same
/// opening, which is to be closed once.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a device stays open until `Metadata::close_thin`"]
pub struct ThinHandle {
    slot: usize,
    id: DeviceId,
}

impl ThinHandle {
    /// The device's id.
    pub fn id(&self) -> DeviceId {
        self.id
    }
}

/// What is known in memory of a device.
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    /// How many handles there are.
    pub(crate) open_count: u32,
    /// Whether it was changed since the last commit: its details must be written.
    pub(crate) changed: bool,
    /// Whether changes of it were lost by an abort while it was open.
    pub(crate) aborted: bool,
    /// Whether it is gone, because an abort undid its creation while it was open.
    pub(crate) gone: bool,
    pub(crate) mapped_blocks: u64,
    pub(crate) transaction_id: u64,
    pub(crate) creation_time: u32,
    pub(crate) snapshotted_time: u32,
    pub(crate) root: Root,
}

/// The root of a device's mappings, if it is known: what the upper level of the mapping tree says.
///
/// Look-ups beside each other may find it at the same time, and all of them find the same one.
pub(crate) struct Root(Atomic<u64>);

impl Root {
    /// The superblock is no tree's root.
    const UNKNOWN: BlockNr = SUPERBLOCK_LOCATION;

    pub(crate) fn unknown() -> Self {
        Self::new(Self::UNKNOWN)
    }

    pub(crate) fn new(root: BlockNr) -> Self {
        Self(Atomic::new(root))
    }

    pub(crate) fn get(&self) -> Option<BlockNr> {
        match self.0.load(Relaxed) {
            Self::UNKNOWN => None,
            root => Some(root),
        }
    }

    /// It was found.
    pub(crate) fn found(&self, root: BlockNr) {
        self.0.store(root, Relaxed);
    }
}

impl Device {
    /// A device that exists, not open yet.
    pub(crate) fn existing(id: DeviceId, details: &DeviceDetails) -> Self {
        Self {
            id,
            open_count: 0,
            changed: false,
            aborted: false,
            gone: false,
            mapped_blocks: details.mapped_blocks.get(),
            transaction_id: details.transaction_id.get(),
            creation_time: details.creation_time.get(),
            snapshotted_time: details.snapshotted_time.get(),
            root: Root::unknown(),
        }
    }

    /// A device that is created now.
    pub(crate) fn new(id: DeviceId, root: BlockNr, transaction_id: u64, time: u32) -> Self {
        Self {
            id,
            open_count: 0,
            changed: true,
            aborted: false,
            gone: false,
            mapped_blocks: 0,
            transaction_id,
            creation_time: time,
            snapshotted_time: time,
            root: Root::new(root),
        }
    }

    /// What is to be written.
    pub(crate) fn details(&self) -> DeviceDetails {
        DeviceDetails {
            mapped_blocks: self.mapped_blocks.into(),
            transaction_id: self.transaction_id.into(),
            creation_time: self.creation_time.into(),
            snapshotted_time: self.snapshotted_time.into(),
        }
    }
}

/// The devices that are open or changed.
///
/// Slots are used again, so a handle is good for as long as its device is open.
pub(crate) struct Devices {
    slots: Vec<Option<Device>>,
    /// The slots of all devices, by ascending id.
    by_id: Vec<(DeviceId, usize)>,
    /// The slots of those that were changed since the last commit.
    changed: Vec<usize>,
    /// The slots without a device. There is always room for all slots in here and in the lists above.
    free: Vec<usize>,
}

impl Devices {
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            by_id: Vec::new(),
            changed: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Where device `id` is in `by_id`, or belongs.
    fn search(&self, id: DeviceId) -> core::result::Result<usize, usize> {
        self.by_id.binary_search_by_key(&id, |(id, _)| *id)
    }

    /// The slot of device `id`, if it is open or changed.
    pub(crate) fn find(&self, id: DeviceId) -> Option<usize> {
        let i = self.search(id).ok()?;
        self.by_id.get(i).map(|(_, slot)| *slot)
    }

    /// Makes sure that the next [`add`](Self::add) succeeds.
    pub(crate) fn reserve(&mut self) -> Result {
        if !self.free.is_empty() {
            return Ok(());
        }
        let slot = self.slots.len();
        let all = slot.saturating_add(1);
        let missing = |len: usize| all.saturating_sub(len);
        self.by_id.try_reserve_room(missing(self.by_id.len()))?;
        self.changed.try_reserve_room(missing(self.changed.len()))?;
        self.free.try_reserve_room(missing(self.free.len()))?;
        self.slots.try_push(None)?;
        self.free.try_push(slot)?;
        Ok(())
    }

    /// Takes `device` in, which no slot has, and gives its slot.
    pub(crate) fn add(&mut self, device: Device) -> Result<usize> {
        let Err(i) = self.search(device.id) else {
            return Err(Error::DeviceExists(device.id));
        };
        self.reserve()?;
        let slot = self.free.pop().ok_or(persistent_data::Error::NoMemory)?;
        self.by_id.try_push((device.id, slot))?;
        if let Some(from_there) = self.by_id.get_mut(i..) {
            from_there.rotate_right(1);
        }
        if device.changed {
            self.changed.try_push(slot)?;
        }
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(device);
        }
        Ok(slot)
    }

    /// The device in `slot`, which is changed now.
    pub(crate) fn change(&mut self, slot: usize) -> Result<&mut Device> {
        if !self.slot(slot)?.changed {
            self.changed.try_push(slot)?;
        }
        let device = self.slot_mut(slot)?;
        device.changed = true;
        Ok(device)
    }

    /// Whether any device was changed since the last commit.
    pub(crate) fn any_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Those that were changed since the last commit.
    pub(crate) fn changed(&self) -> impl Iterator<Item = &Device> {
        self.changed
            .iter()
            .filter_map(|slot| self.slots.get(*slot)?.as_ref())
    }

    /// All changes are committed. Devices without handles are forgotten.
    pub(crate) fn set_committed(&mut self) {
        while let Some(slot) = self.changed.pop() {
            let Some(Some(device)) = self.slots.get_mut(slot) else {
                continue;
            };
            device.changed = false;
            if device.open_count == 0 {
                self.forget(slot);
            }
        }
    }

    /// All changes are lost. Devices without handles are forgotten, as is the root of each other one; `f` makes those
    /// that were changed what they were at the last commit.
    ///
    /// An error of `f` ends it, and leaves those that it did not get to as they are.
    pub(crate) fn roll_back(&mut self, mut f: impl FnMut(&Device) -> Result<Device>) -> Result {
        for slot in 0..self.slots.len() {
            let Some(Some(device)) = self.slots.get_mut(slot) else {
                continue;
            };
            if device.open_count == 0 {
                self.forget(slot);
            } else {
                device.root = Root::unknown();
            }
        }
        while let Some(slot) = self.changed.last().copied() {
            if let Some(Some(device)) = self.slots.get_mut(slot) {
                *device = f(device)?;
                device.changed = false;
            }
            let _ = self.changed.pop();
        }
        Ok(())
    }

    pub(crate) fn slot(&self, slot: usize) -> Result<&Device> {
        match self.slots.get(slot) {
            Some(Some(device)) => Ok(device),
            _ => Err(Error::BadHandle),
        }
    }

    pub(crate) fn slot_mut(&mut self, slot: usize) -> Result<&mut Device> {
        match self.slots.get_mut(slot) {
            Some(Some(device)) => Ok(device),
            _ => Err(Error::BadHandle),
        }
    }

    /// Opens the device in `slot` once more.
    pub(crate) fn open(&mut self, slot: usize) -> Result<ThinHandle> {
        let device = self.slot_mut(slot)?;
        device.open_count = device
            .open_count
            .checked_add(1)
            .ok_or(Error::DeviceOpen(device.id))?;
        Ok(ThinHandle {
            slot,
            id: device.id,
        })
    }

    /// The device that `thin` is a handle of.
    pub(crate) fn get(&self, thin: &ThinHandle) -> Result<&Device> {
        match self.slot(thin.slot) {
            Ok(device) if device.id == thin.id && device.open_count > 0 => Ok(device),
            _ => Err(Error::BadHandle),
        }
    }

    /// The device that `thin` is a handle of, for changing.
    pub(crate) fn get_mut(&mut self, thin: &ThinHandle) -> Result<&mut Device> {
        self.get(thin)?;
        self.slot_mut(thin.slot)
    }

    /// The device that `thin` is a handle of, which is changed now.
    pub(crate) fn get_changed(&mut self, thin: &ThinHandle) -> Result<&mut Device> {
        self.get(thin)?;
        self.change(thin.slot)
    }

    /// As [`get`](Self::get), for a device that an abort has not undone.
    pub(crate) fn get_live(&self, thin: &ThinHandle) -> Result<&Device> {
        let device = self.get(thin)?;
        if device.gone {
            return Err(Error::NoDevice(device.id));
        }
        Ok(device)
    }

    /// Takes one handle back; a device without handles and changes is forgotten.
    pub(crate) fn close(&mut self, thin: &ThinHandle) {
        if let Ok(device) = self.get_mut(thin) {
            device.open_count -= 1;
            self.forget_unused(thin.slot);
        }
    }

    /// Forgets the device in `slot` if it has no handles and no changes.
    pub(crate) fn forget_unused(&mut self, slot: usize) {
        if matches!(self.slot(slot), Ok(device) if device.open_count == 0 && !device.changed) {
            self.forget(slot);
        }
    }

    /// Forgets the device in `slot`.
    pub(crate) fn forget(&mut self, slot: usize) {
        let Some(device) = self.slots.get_mut(slot).and_then(Option::take) else {
            return;
        };
        if device.changed {
            self.changed.retain(|changed| *changed != slot);
        }
        if let Ok(i) = self.search(device.id) {
            if let Some(from_there) = self.by_id.get_mut(i..) {
                from_there.rotate_left(1);
            }
            let _ = self.by_id.pop();
        }
        // There is room.
        let _ = self.free.try_push(slot);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Device> {
        self.slots.iter().flatten()
    }
}

#[cfg(any(test, dm_thin_kunit))]
#[cfg_attr(dm_thin_kunit, kernel::macros::kunit_tests(thin_metadata_device))]
mod tests {
    use super::*;

    fn id(x: u64) -> DeviceId {
        DeviceId::try_from(x).unwrap_or(DeviceId(0))
    }

    #[test]
    fn ids_have_24_bits() {
        assert_eq!(DeviceId::try_from(0).map(DeviceId::key), Ok(0));
        assert_eq!(
            DeviceId::try_from(0xff_ffff).map(DeviceId::key),
            Ok(0xff_ffff)
        );
        assert_eq!(
            DeviceId::try_from(0x100_0000),
            Err(Error::BadDeviceId(0x100_0000))
        );
        assert_eq!(
            DeviceId::try_from(1 << 32),
            Err(Error::BadDeviceId(1 << 32))
        );
    }

    #[test]
    fn a_device_is_remembered_while_open_or_changed() {
        let mut devices = Devices::new();
        let slot = devices
            .add(Device::new(id(7), 0, 0, 0))
            .unwrap_or(usize::MAX);
        assert_eq!(devices.find(id(7)), Some(slot));

        let opened = devices.open(slot);
        assert!(opened.is_ok());
        if let Ok(thin) = opened {
            assert!(devices.get(&thin).is_ok());
            devices.set_committed();
            assert_eq!(devices.find(id(7)), Some(slot));
            devices.close(&thin);
        }
        assert_eq!(devices.find(id(7)), None);

        assert!(devices.add(Device::new(id(7), 0, 0, 0)).is_ok());
        devices.set_committed();
        assert_eq!(devices.find(id(7)), None);
    }

    #[test]
    fn slots_are_used_again() {
        let mut devices = Devices::new();
        assert_eq!(devices.add(Device::new(id(1), 0, 0, 0)), Ok(0));
        assert_eq!(devices.add(Device::new(id(2), 0, 0, 0)), Ok(1));
        devices.forget(0);
        assert_eq!(devices.add(Device::new(id(3), 0, 0, 0)), Ok(0));
        assert_eq!(devices.find(id(3)), Some(0));
        assert_eq!(devices.find(id(2)), Some(1));
        assert_eq!(devices.find(id(1)), None);
        assert_eq!(devices.iter().count(), 2);
    }

    #[test]
    fn nothing_is_in_twice() {
        let mut devices = Devices::new();
        assert_eq!(devices.add(Device::new(id(1), 0, 0, 0)), Ok(0));
        let again = devices.add(Device::new(id(1), 0, 0, 0));
        assert_eq!(again, Err(Error::DeviceExists(id(1))));
        assert_eq!(devices.changed().count(), 1);
        assert!(devices.change(0).is_ok() && devices.change(0).is_ok());
        assert_eq!(devices.changed().count(), 1);
    }

    /// Of ten thousand, a commit looks at those that were changed.
    #[test]
    fn only_changed_devices_are_looked_at() {
        const COUNT: u64 = 10_000;
        let mut devices = Devices::new();
        for i in 0..COUNT {
            // Not in the order of their ids; 7 and the number of them have no common divisor.
            let device = Device::new(id(i * 7 % COUNT), 0, 0, 0);
            let slot = devices.add(device).unwrap_or(usize::MAX);
            assert!(devices.open(slot).is_ok());
        }
        devices.set_committed();
        assert!(!devices.any_changed());
        for i in 0..COUNT {
            let slot = devices.find(id(i)).unwrap_or(usize::MAX);
            assert!(devices.slot(slot).is_ok_and(|device| device.id == id(i)));
        }

        for i in [0, 4711, COUNT - 1] {
            let slot = devices.find(id(i)).unwrap_or(usize::MAX);
            assert!(devices.change(slot).is_ok());
        }
        assert!(devices
            .changed()
            .map(|device| device.id.key())
            .eq([0, 4711, COUNT - 1]));
        let slot = devices.find(id(4711)).unwrap_or(usize::MAX);
        devices.forget(slot);
        assert!(devices
            .changed()
            .map(|device| device.id.key())
            .eq([0, COUNT - 1]));
        devices.set_committed();
        assert_eq!(devices.changed().count(), 0);
        assert_eq!(devices.iter().count() as u64, COUNT - 1);
    }

    #[test]
    fn an_abort_undoes_what_was_changed() {
        let mut devices = Devices::new();
        for i in 0..4 {
            let device = Device::new(id(i), 5, 0, 0);
            assert!(devices.add(device).is_ok());
        }
        assert!(devices.open(0).is_ok() && devices.open(1).is_ok());
        devices.set_committed();
        assert!(devices.add(Device::new(id(9), 5, 0, 0)).is_ok());
        assert!(devices.change(1).is_ok());

        let mut undone = 0;
        let result = devices.roll_back(|device| {
            undone += 1;
            Ok(Device {
                aborted: true,
                root: Root::unknown(),
                ..*device
            })
        });
        assert!(result.is_ok() && undone == 1 && !devices.any_changed());
        assert!(devices
            .iter()
            .map(|device| (device.id.key(), device.aborted, device.root.get()))
            .eq([(0, false, None), (1, true, None),]));
        assert_eq!(devices.find(id(9)), None);
    }
}
