// SPDX-License-Identifier: GPL-2.0

//! The construction of a target.

use crate::{
    bindings,
    Dev,
    DevT,
    MdId,
    Mode,
    Sector,
    Ti, //
};
use core::{
    fmt::Write as _,
    mem::MaybeUninit,
    ptr::NonNull, //
};
use kernel::{
    error::to_result,
    prelude::*,
    str::CStr, //
};

/// A target under construction: what [`Target::ctr`] may ask and set.
///
/// [`Target::ctr`]: crate::Target::ctr
pub struct Ctr<'a> {
    target: &'a mut bindings::dm_target,
    ti: &'a Ti,
    devices: &'a mut Devices,
}

macro_rules! bits {
    ($($(#[$doc:meta])* $name:ident, $set:ident;)*) => {
        impl Ctr<'_> {$(
            $(#[$doc])*
            pub fn $name(&mut self, on: bool) {
                self.target.$set(on);
            }
        )*}
    };
}

bits! {
    /// Whether flushes are wanted even if no device below has a write cache.
    set_flush_supported, set_flush_supported;
    /// Whether discards are wanted even if no device below supports them.
    set_discards_supported, set_discards_supported;
    /// Whether discards shall be split at multiples of the maximum discard size.
    set_max_discard_granularity, set_max_discard_granularity;
    /// Whether the number of bios of the swapper in flight shall be limited.
    set_limit_swap_bios, set_limit_swap_bios;
    /// Whether the core may send flushes straight to the devices below, past [`Target::map`].
    ///
    /// [`Target::map`]: crate::Target::map
    set_flush_bypasses_map, set_flush_bypasses_map;
}

impl<'a> Ctr<'a> {
    pub(crate) fn new(
        target: &'a mut bindings::dm_target,
        ti: &'a Ti,
        devices: &'a mut Devices,
    ) -> Self {
        Self {
            target,
            ti,
            devices,
        }
    }

    /// Sets the reason that the log gives for a failure; returns `err` for convenience.
    pub fn error(&mut self, reason: &'static CStr, err: Error) -> Error {
        self.target.error = reason.as_char_ptr().cast_mut();
        err
    }

    /// The target's handle, to be cloned and kept.
    pub fn handle(&self) -> &'a Ti {
        self.ti
    }

    /// Where the target begins in its mapped device.
    pub fn begin(&self) -> Sector {
        self.ti.begin()
    }

    /// The target's length.
    pub fn len(&self) -> Sector {
        self.ti.len()
    }

    /// The identity of the mapped device that the table is for.
    pub fn md_id(&self) -> MdId {
        self.ti.md_id()
    }

    /// The device's name in log lines.
    pub fn name(&self) -> &'a str {
        self.ti.name()
    }

    /// The table's mode.
    pub fn mode(&self) -> Mode {
        // SAFETY: In the constructor the table is valid.
        Mode(unsafe { bindings::dm_table_get_mode(self.target.table) })
    }

    /// Opens a device, by path or `major:minor`, for as long as the target lives.
    ///
    /// EINVAL if it is the mapped device itself; otherwise what opening gives, ENODEV or EBUSY for
    /// instance.
    pub fn get_device(&mut self, path: &CStr, mode: Mode) -> Result<Dev> {
        self.devices.0.reserve(1, GFP_KERNEL)?;
        let mut dev = core::ptr::null_mut();
        // SAFETY: In the constructor the target is valid and its table under construction.
        to_result(unsafe {
            bindings::dm_get_device(self.target, path.as_char_ptr(), mode.0, &mut dev)
        })?;
        let dev = NonNull::new(dev).ok_or(ENODEV)?;
        // SAFETY: `dm_get_device` gave a valid device.
        let number = DevT(unsafe { (*dev.as_ref().bdev).bd_dev });
        // There is room, so the device will be put with the target.
        self.devices.0.push(number, GFP_KERNEL)?;
        // SAFETY: As above; nothing else can touch the table while it is under construction.
        unsafe { Dev::from_raw(dev) }
    }

    /// How many bios the target wants for each flush.
    pub fn set_num_flush_bios(&mut self, n: u32) {
        self.target.num_flush_bios = n;
    }

    /// How many bios the target wants for each discard; without any, discards are not supported.
    pub fn set_num_discard_bios(&mut self, n: u32) {
        self.target.num_discard_bios = n;
    }

    /// How many bios the target wants for each write-zeroes.
    pub fn set_num_write_zeroes_bios(&mut self, n: u32) {
        self.target.num_write_zeroes_bios = n;
    }

    /// Bios shall not cross multiples of `len`, nor be larger; EINVAL if it exceeds 32 bits.
    pub fn set_max_io_len(&mut self, len: Sector) -> Result {
        // SAFETY: The target is valid.
        to_result(unsafe { bindings::dm_set_target_max_io_len(self.target, len) })
    }
}

/// The devices that a target got from the core.
///
/// The core keeps one record for each device of a table, which it replaces when the device is
/// opened anew for more. So a record is not remembered, but looked up again by the device's number.
pub(crate) struct Devices(KVec<DevT>);

impl Devices {
    pub(crate) const fn new() -> Self {
        Self(KVec::new())
    }

    /// Whether `dev` is one of them.
    pub(crate) fn contains(&self, dev: &Dev) -> bool {
        let number = dev.number();
        self.0.iter().any(|d| *d == number)
    }

    /// Gives them back.
    ///
    /// # Safety
    ///
    /// They must have been got for `ti`, and the call be made by its constructor or destructor.
    pub(crate) unsafe fn put(self, ti: *mut bindings::dm_target) {
        for number in &self.0 {
            let mut path = [const { MaybeUninit::uninit() }; 24];
            let _ = write!(crate::Output::over(&mut path), "{number}");
            let mut dev = core::ptr::null_mut();
            // SAFETY: `path` is a C string, as `Output` writes it. As the device is in the table
            // already and reading needs no more than it is open for, this only takes another
            // reference to the current record. This and the one from before are then put.
            unsafe {
                let path = path.as_ptr().cast();
                if bindings::dm_get_device(ti, path, Mode::READ.0, &mut dev) == 0 {
                    bindings::dm_put_device(ti, dev);
                    bindings::dm_put_device(ti, dev);
                }
            }
        }
    }
}
