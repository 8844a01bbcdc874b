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
///
/// # Invariants
///
/// `target` is valid, and only changed by us.
pub struct Ctr<'a> {
    /// Not a reference, as those who have a handle may read it meanwhile.
    target: NonNull<bindings::dm_target>,
    ti: &'a Ti,
    devices: &'a mut Devices,
}

macro_rules! bits {
    ($($(#[$doc:meta])* $name:ident, $raw:ident;)*) => {
        impl Ctr<'_> {$(
            $(#[$doc])*
            pub fn $name(&mut self, on: bool) {
                // SAFETY: Valid and ours to change by the type invariants.
                unsafe { bindings::dm_target::$raw(self.target.as_ptr(), on) };
            }
        )*}
    };
}

bits! {
    /// Whether flushes are wanted even if no device below has a write cache.
    set_flush_supported, set_flush_supported_raw;
    /// Whether discards are wanted even if no device below supports them.
    set_discards_supported, set_discards_supported_raw;
    /// Whether discards shall be split at multiples of the maximum discard size.
    set_max_discard_granularity, set_max_discard_granularity_raw;
    /// Whether the number of bios of the swapper in flight shall be limited.
    set_limit_swap_bios, set_limit_swap_bios_raw;
    /// Whether the core may send flushes straight to the devices below, past [`Target::map`].
    ///
    /// [`Target::map`]: crate::Target::map
    set_flush_bypasses_map, set_flush_bypasses_map_raw;
}

impl<'a> Ctr<'a> {
    /// # Safety
    ///
    /// The type invariants must hold for `target` for `'a`.
    pub(crate) unsafe fn new(
        target: NonNull<bindings::dm_target>,
        ti: &'a Ti,
        devices: &'a mut Devices,
    ) -> Self {
        // INVARIANT: By the function's requirements.
        Self {
            target,
            ti,
            devices,
        }
    }

    /// Sets the reason that the log gives for a failure; returns `err` for convenience.
    pub fn error(&mut self, reason: &'static CStr, err: Error) -> Error {
        // SAFETY: Valid and ours to change by the type invariants; the core only reads the string.
        unsafe { (*self.target.as_ptr()).error = reason.as_char_ptr().cast_mut() };
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
    #[expect(clippy::len_without_is_empty)]
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
        Mode(unsafe { bindings::dm_table_get_mode((*self.target.as_ptr()).table) })
    }

    /// Opens a device, by path or `major:minor`, for as long as the target lives.
    ///
    /// EINVAL if it is the mapped device itself; otherwise what opening gives, ENODEV or EBUSY for
    /// instance.
    pub fn get_device(&mut self, path: &CStr, mode: Mode) -> Result<Dev> {
        self.devices.held.reserve(1, GFP_KERNEL)?;
        let mut dev = core::ptr::null_mut();
        // SAFETY: In the constructor the target is valid and its table under construction.
        to_result(unsafe {
            bindings::dm_get_device(self.target.as_ptr(), path.as_char_ptr(), mode.0, &mut dev)
        })?;
        let dev = NonNull::new(dev).ok_or(ENODEV)?;
        // SAFETY: `dm_get_device` gave a valid device.
        let held = unsafe {
            let bdev = dev.as_ref().bdev;
            Held {
                number: DevT((*bdev).bd_dev),
                bdev,
            }
        };
        // There is room, so the device will be put with the target.
        self.devices.held.push(held, GFP_KERNEL)?;
        // SAFETY: As above; nothing else can touch the table while it is under construction.
        unsafe { Dev::from_raw(dev) }
    }

    /// Allows to send bios also to `dev`, which another target has opened, for as long as the target lives.
    ///
    /// The device does not become part of the table.
    pub fn borrow_device(&mut self, dev: &Dev) -> Result {
        Ok(self.devices.borrowed.push(dev.clone(), GFP_KERNEL)?)
    }

    /// How many bios the target wants for each flush.
    pub fn set_num_flush_bios(&mut self, n: u32) {
        // SAFETY: Valid and ours to change by the type invariants.
        unsafe { (*self.target.as_ptr()).num_flush_bios = n };
    }

    /// How many bios the target wants for each discard; without any, discards are not supported.
    pub fn set_num_discard_bios(&mut self, n: u32) {
        // SAFETY: Valid and ours to change by the type invariants.
        unsafe { (*self.target.as_ptr()).num_discard_bios = n };
    }

    /// How many bios the target wants for each write-zeroes.
    pub fn set_num_write_zeroes_bios(&mut self, n: u32) {
        // SAFETY: Valid and ours to change by the type invariants.
        unsafe { (*self.target.as_ptr()).num_write_zeroes_bios = n };
    }

    /// Bios shall not cross multiples of `len`, nor be larger; EINVAL if it exceeds 32 bits.
    pub fn set_max_io_len(&mut self, len: Sector) -> Result {
        // SAFETY: The target is valid.
        to_result(unsafe { bindings::dm_set_target_max_io_len(self.target.as_ptr(), len) })
    }
}

/// The devices of a target, which stay open until it is destroyed.
///
/// The core keeps one record for each device of a table, which it replaces when the device is
/// opened anew for more. So a record is not remembered, but looked up again by the device's number.
pub(crate) struct Devices {
    /// Those that it got from the core.
    held: KVec<Held>,
    /// Those of other targets.
    borrowed: KVec<Dev>,
}

struct Held {
    number: DevT,
    /// For comparisons.
    bdev: *const bindings::block_device,
}

// SAFETY: The pointer is only compared.
unsafe impl Send for Held {}
// SAFETY: As above.
unsafe impl Sync for Held {}

impl Devices {
    pub(crate) const fn new() -> Self {
        Self {
            held: KVec::new(),
            borrowed: KVec::new(),
        }
    }

    /// Whether the core has opened `dev` for the target.
    #[inline]
    pub(crate) fn holds(&self, dev: &Dev) -> bool {
        let bdev = dev.bdev().cast_const();
        self.held.iter().any(|d| d.bdev == bdev)
    }

    /// Whether `dev` is one of them.
    #[inline]
    pub(crate) fn contains(&self, dev: &Dev) -> bool {
        self.borrowed.iter().any(|d| d.is_same(dev)) || self.holds(dev)
    }

    /// Gives them back.
    ///
    /// # Safety
    ///
    /// They must have been got for `ti`, and the call be made by its constructor or destructor.
    pub(crate) unsafe fn put(self, ti: *mut bindings::dm_target) {
        for Held { number, .. } in &self.held {
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
