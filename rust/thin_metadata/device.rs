// SPDX-License-Identifier: GPL-2.0

//! Thin devices: their ids, and what is known in memory of those that are open or changed.

use core::fmt;

use persistent_data::{
    block::BlockNr,
    platform::{
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
        MAX_DEVICE_ID, //
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
#[derive(Clone, Copy, Debug)]
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
    /// The root of its mappings, if it is known: what the upper level of the mapping tree says.
    pub(crate) root: Option<BlockNr>,
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
            root: None,
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
            root: Some(root),
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
}

impl Devices {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new() }
    }

    /// The slot of device `id`, if it is open or changed.
    pub(crate) fn find(&self, id: DeviceId) -> Option<usize> {
        self.slots
            .iter()
            .position(|slot| matches!(slot, Some(device) if device.id == id))
    }

    /// Makes sure that the next [`add`](Self::add) succeeds.
    pub(crate) fn reserve(&mut self) -> Result {
        if !self.slots.iter().any(Option::is_none) {
            self.slots.try_push(None)?;
        }
        Ok(())
    }

    /// Takes `device` in and gives its slot.
    pub(crate) fn add(&mut self, device: Device) -> Result<usize> {
        self.reserve()?;
        for (i, slot) in self.slots.iter_mut().enumerate() {
            if slot.is_none() {
                *slot = Some(device);
                return Ok(i);
            }
        }
        Err(persistent_data::Error::NoMemory.into())
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
        match self.slot_mut(thin.slot) {
            Ok(device) if device.id == thin.id && device.open_count > 0 => Ok(device),
            _ => Err(Error::BadHandle),
        }
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
            if device.open_count == 0 && !device.changed {
                self.forget(thin.slot);
            }
        }
    }

    /// Forgets the device in `slot`.
    pub(crate) fn forget(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = None;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Device> {
        self.slots.iter().flatten()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Device> {
        self.slots.iter_mut().flatten()
    }

    /// Keeps those that `f` says true of.
    pub(crate) fn retain(&mut self, mut f: impl FnMut(&Device) -> bool) {
        for slot in self.slots.iter_mut() {
            if matches!(slot, Some(device) if !f(device)) {
                *slot = None;
            }
        }
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
            for device in devices.iter_mut() {
                device.changed = false;
            }
            devices.close(&thin);
        }
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
        assert_eq!(devices.iter().count(), 2);
    }
}
