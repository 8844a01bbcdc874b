// SPDX-License-Identifier: GPL-2.0

//! Devices below a target.

use crate::{
    bindings,
    Limits,
    Md,
    Sector, //
};
use core::{
    fmt,
    ptr::NonNull, //
};
use kernel::{
    error::to_result,
    prelude::*,
    sync::Arc, //
};

/// How a device is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub(crate) bindings::blk_mode_t);

impl Mode {
    /// For reading alone.
    pub const READ: Self = Self(bindings::BLK_OPEN_READ);
    /// For reading and writing.
    pub const READ_WRITE: Self = Self(bindings::BLK_OPEN_READ | bindings::BLK_OPEN_WRITE);

    /// Whether writing is included.
    pub fn is_writable(self) -> bool {
        self.0 & bindings::BLK_OPEN_WRITE != 0
    }
}

/// A device number, shown as `major:minor`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DevT(pub(crate) bindings::dev_t);

impl DevT {
    const MINOR_BITS: u32 = 20;

    /// The major number.
    pub fn major(self) -> u32 {
        self.0 >> Self::MINOR_BITS
    }

    /// The minor number.
    pub fn minor(self) -> u32 {
        self.0 & ((1 << Self::MINOR_BITS) - 1)
    }
}

impl fmt::Display for DevT {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major(), self.minor())
    }
}

impl kernel::fmt::Display for DevT {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An open block device, from [`Ctr::get_device`].
///
/// It can be cloned, kept and dropped anywhere: the device stays open until the last clone is gone
/// and the target's table is destroyed. Should a clone outlive the target, the device is closed a
/// little after that, not before the ioctl that removes the target returns.
///
/// [`Ctr::get_device`]: crate::Ctr::get_device
#[derive(Clone)]
pub struct Dev(Arc<Inner>);

/// # Invariants
///
/// `file` is a counted reference to the file of the open block device `desc.bdev`.
struct Inner {
    file: NonNull<bindings::file>,
    /// What the core's iterators get to see; a copy, as the core may replace its own at any time.
    desc: bindings::dm_dev,
}

// SAFETY: The file and the block device are reference counted and usable on any thread; `desc` is
// never written to.
unsafe impl Send for Inner {}
// SAFETY: As above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: The reference is ours by the type invariants. This may be called in any context,
        // it closes later if need be.
        unsafe { bindings::fput(self.file.as_ptr()) };
    }
}

impl Dev {
    /// # Safety
    ///
    /// `dev` must be a valid, open `struct dm_dev`, for the duration of the call.
    pub(crate) unsafe fn from_raw(dev: NonNull<bindings::dm_dev>) -> Result<Self> {
        // SAFETY: By the function's requirements.
        let dev = unsafe { dev.as_ref() };
        let file = NonNull::new(dev.bdev_file).ok_or(ENXIO)?;
        // SAFETY: An open device has a file, which is valid as the device is.
        unsafe { bindings::dm_rs_helper_get_file(file.as_ptr()) };
        // INVARIANT: The reference was just taken, on the file that keeps `bdev` open. Should the
        // allocation fail, the value is dropped and so the reference with it.
        Ok(Self(Arc::new(
            Inner {
                file,
                desc: bindings::dm_dev {
                    dax_dev: core::ptr::null_mut(),
                    ..*dev
                },
            },
            GFP_KERNEL,
        )?))
    }

    #[inline]
    pub(crate) fn bdev(&self) -> *mut bindings::block_device {
        self.0.desc.bdev
    }

    /// Valid as long as `self`, and never written to.
    pub(crate) fn desc(&self) -> *mut bindings::dm_dev {
        (&raw const self.0.desc).cast_mut()
    }

    /// The device's number.
    pub fn number(&self) -> DevT {
        // SAFETY: By the invariants of `Inner` the device is open; its number does not change.
        DevT(unsafe { (*self.bdev()).bd_dev })
    }

    /// Whether both are one device.
    pub fn is_same(&self, other: &Self) -> bool {
        self.bdev() == other.bdev()
    }

    /// The name that the kernel uses in its log, such as `dm-3`; C's `%pg`.
    pub fn name(&self) -> DevName {
        let mut buf = [0u8; 40];
        // SAFETY: `buf` is writable, `%pg` takes a block device, which is valid while open.
        unsafe {
            bindings::snprintf(
                buf.as_mut_ptr().cast(),
                buf.len(),
                c"%pg".as_char_ptr(),
                self.bdev(),
            )
        };
        DevName(buf)
    }

    /// How it was opened.
    pub fn mode(&self) -> Mode {
        Mode(self.0.desc.mode)
    }

    /// Its size now.
    pub fn sectors(&self) -> Sector {
        // SAFETY: The device is open.
        unsafe { bindings::dm_rs_helper_bdev_nr_sectors(self.bdev()) }
    }

    /// Whether it cannot be written to.
    pub fn is_read_only(&self) -> bool {
        // SAFETY: The device is open.
        unsafe { bindings::dm_rs_helper_bdev_read_only(self.bdev()) }
    }

    /// The limits of its queue.
    pub fn limits(&self) -> &Limits {
        // SAFETY: The device is open, its queue lives as long. The limits may change meanwhile,
        // which `Limits` allows for.
        unsafe { Limits::from_raw(bindings::dm_rs_helper_bdev_limits(self.bdev())) }
    }

    /// The largest discard, in sectors; zero if discards are not supported.
    pub fn max_discard_sectors(&self) -> u32 {
        // SAFETY: The device is open.
        unsafe { bindings::dm_rs_helper_bdev_max_discard_sectors(self.bdev()) }
    }

    /// Whether it takes bios that must not wait.
    pub fn has_nowait(&self) -> bool {
        // SAFETY: The device is open.
        unsafe { bindings::dm_rs_helper_bdev_nowait(self.bdev()) }
    }

    /// Zeroes `len` sectors from `sector` on and waits for that, in whatever way the device can do it.
    pub fn zero_out(&self, sector: Sector, len: Sector) -> Result {
        // SAFETY: The device is open.
        to_result(unsafe {
            bindings::blkdev_issue_zeroout(self.bdev(), sector, len, bindings::GFP_NOIO, 0)
        })
    }

    /// Reads `N` bytes, whole sectors, from `sector` on, and waits for that. Caches above the device are passed by.
    pub fn read<const N: usize>(&self, sector: Sector, data: &mut KBox<[u8; N]>) -> Result {
        const { assert!(N > 0 && N.is_multiple_of(512)) };
        // SAFETY: The device is open. `data` is ours to write to, and as memory of kmalloc in the direct mapping.
        to_result(unsafe {
            bindings::bdev_rw_virt(
                self.bdev(),
                sector,
                data.as_mut_ptr().cast(),
                N,
                bindings::req_op_REQ_OP_READ,
            )
        })
    }

    /// Flushes its write cache and waits for that.
    pub fn flush(&self) -> Result {
        // SAFETY: The device is open.
        to_result(unsafe { bindings::blkdev_issue_flush(self.bdev()) })
    }

    /// The mapped device behind it, if there is one and it is not about to be removed.
    pub fn mapped_device(&self) -> Option<Md> {
        Md::find(self.number())
    }
}

/// A device's name; see [`Dev::name`].
pub struct DevName([u8; 40]);

impl fmt::Display for DevName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.split(|&b| b == 0).next().unwrap_or_default();
        f.write_str(core::str::from_utf8(name).unwrap_or("?"))
    }
}

impl kernel::fmt::Display for DevName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
