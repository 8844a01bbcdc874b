// SPDX-License-Identifier: GPL-2.0

//! What a target is.

use crate::{
    bindings,
    ctr::Devices,
    Args,
    Bio,
    BlkStatus,
    Ctr,
    Dev,
    Limits,
    Message,
    Output,
    Sector, //
};
use core::{
    fmt,
    num::NonZeroI32, //
};
use kernel::{
    prelude::*,
    str::CStr,
    ModuleMetadata, //
};

/// Features of a target type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Features(pub(crate) u64);

impl Features {
    /// None.
    pub const NONE: Self = Self(0);
    /// A table with such a target has no other.
    pub const SINGLETON: Self = Self(bindings::DM_TARGET_SINGLETON as u64);
    /// Tables must not be read-only.
    pub const ALWAYS_WRITEABLE: Self = Self(bindings::DM_TARGET_ALWAYS_WRITEABLE as u64);
    /// A device with such a target can never have a table with another type.
    pub const IMMUTABLE: Self = Self(bindings::DM_TARGET_IMMUTABLE as u64);
    /// Inline encryption may pass through.
    pub const PASSES_CRYPTO: Self = Self(bindings::DM_TARGET_PASSES_CRYPTO as u64);
    /// Bios that must not wait are handled.
    pub const NOWAIT: Self = Self(bindings::DM_TARGET_NOWAIT as u64);

    /// Both.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What [`Target::map`] did with a bio.
pub enum Map<P> {
    /// It is kept, or was ended or submitted already.
    Submitted,
    /// It was remapped, the core shall submit it.
    Remapped(Bio<P>),
    /// It fails with an I/O error. [`Target::end_io`] is not told.
    Kill(Bio<P>),
}

/// What [`Target::end_io`] did with a bio.
pub enum EndIo<P> {
    /// It is done, with this outcome. The per-bio data is dropped.
    Done(Bio<P>, BlkStatus),
    /// It is kept, to be ended later; [`Target::end_io`] is told again then.
    Incomplete,
}

/// What a status line is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StatusKind {
    /// `dmsetup status`.
    Info,
    /// `dmsetup table`.
    Table,
    /// Integrity measurement.
    Ima,
}

/// How a status line is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatusFlags(pub(crate) c_uint);

impl StatusFlags {
    /// Whether nothing shall be written out for the sake of an accurate answer.
    pub fn is_noflush(self) -> bool {
        // The core's private header says: bit 0 is `DM_STATUS_NOFLUSH_FLAG`.
        self.0 & 1 != 0
    }
}

/// Why an iteration over devices stopped; to be passed on with `?`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stop(pub(crate) NonZeroI32);

/// What the core wants to do with each device of a target.
pub struct EachDevice<'a> {
    pub(crate) ti: *mut bindings::dm_target,
    pub(crate) devices: &'a Devices,
    pub(crate) f: unsafe extern "C" fn(
        *mut bindings::dm_target,
        *mut bindings::dm_dev,
        bindings::sector_t,
        bindings::sector_t,
        *mut c_void,
    ) -> c_int,
    pub(crate) data: *mut c_void,
}

impl EachDevice<'_> {
    /// Tells of the part of `dev` that the target uses; a device of another target is left out.
    pub fn call(&mut self, dev: &Dev, start: Sector, len: Sector) -> Result<(), Stop> {
        if !self.devices.holds(dev) {
            return Ok(());
        }
        // SAFETY: The core gave us function and data for this target. The device is open, and what
        // stands for it outlives the call, and is only read.
        let r = unsafe { (self.f)(self.ti, dev.desc(), start, len, self.data) };
        NonZeroI32::new(r).map_or(Ok(()), |r| Err(Stop(r)))
    }
}

/// A target type.
///
/// The value is one target of a table. It is made by [`Target::ctr`] and dropped, when the table is
/// destroyed and no bio is left, in a context that may sleep. The functions without a default are
/// necessary, of the others only those that are given are made known to the core.
///
/// A clone of the target's [`Ti`](crate::Ti), taken in the constructor, is the way to the core.
#[vtable]
pub trait Target: Sized + Send + Sync + 'static {
    /// Its name in tables.
    const NAME: &'static CStr;
    /// Its version.
    const VERSION: [u32; 3];
    /// Its features.
    const FEATURES: Features;
    /// The module that it lives in.
    type Module: ModuleMetadata;
    /// What is stored along with each bio: made before [`Target::map`], dropped when the bio has
    /// ended for good. That may be in interrupt context.
    type PerBio: Default + Send;

    /// Constructor.
    ///
    /// `accounts_remapped_io` and the size of the per-bio data are set by this crate. An error is
    /// what `dmsetup` reports; [`Ctr::error`] sets the reason that the log gives.
    fn ctr(ti: &mut Ctr<'_>, args: Args<'_>) -> Result<Pin<KBox<Self>>>;

    /// Maps a bio, whose sector is relative to the beginning of the target.
    ///
    /// May be called from several threads at once, and must not wait for other bios.
    fn map(&self, bio: Bio<Self::PerBio>) -> Map<Self::PerBio>;

    /// How many sectors of a discard or a write-zeroes the target deals with at once, at least one: what is
    /// beyond comes as another bio. Asked right before [`Target::map`], and for no other bios.
    ///
    /// A write-zeroes of a zoned device, which the core does not take apart, is mapped as it is.
    fn accept(&self, bio: &Bio<Self::PerBio>) -> Sector {
        let _ = bio;
        build_error!(kernel::error::VTABLE_DEFAULT_ERROR)
    }

    /// A bio has come to its end: it came back from below, or [`Bio::end`] was called.
    ///
    /// May be called in interrupt context, and in whatever context and with whatever locks
    /// [`Bio::end`] is called. It must not sleep: it runs in an RCU read-side critical section, by which the
    /// target stays also after the bio was given to somebody else.
    fn end_io(&self, bio: Bio<Self::PerBio>, status: BlkStatus) -> EndIo<Self::PerBio> {
        let _ = (bio, status);
        build_error!(kernel::error::VTABLE_DEFAULT_ERROR)
    }

    /// A suspend begins: bios may still come in and be in flight.
    fn presuspend(&self) {
        build_error!(kernel::error::VTABLE_DEFAULT_ERROR)
    }

    /// The suspend did not happen after all.
    fn presuspend_undo(&self) {
        build_error!(kernel::error::VTABLE_DEFAULT_ERROR)
    }

    /// The device is suspended: no bio is left. A call of [`Target::end_io`] that gave its bio to somebody else may
    /// not have returned yet.
    fn postsuspend(&self) {
        build_error!(kernel::error::VTABLE_DEFAULT_ERROR)
    }

    /// A resume begins, an error keeps it from happening.
    fn preresume(&self) -> Result {
        build_error!(kernel::error::VTABLE_DEFAULT_ERROR)
    }

    /// The device is resumed: bios may come in.
    fn resume(&self) {
        build_error!(kernel::error::VTABLE_DEFAULT_ERROR)
    }

    /// A message, with one argument at least.
    fn message(&self, msg: &mut Message<'_>) -> Result {
        let _ = msg;
        build_error!(kernel::error::VTABLE_DEFAULT_ERROR)
    }

    /// Writes a status line. Whatever is written stays, also in case of an error, which is ignored.
    fn status(&self, kind: StatusKind, flags: StatusFlags, out: &mut Output<'_>) -> fmt::Result {
        let _ = (kind, flags, out);
        build_error!(kernel::error::VTABLE_DEFAULT_ERROR)
    }

    /// Calls `each` for each device below that it uses.
    fn iterate_devices(&self, each: &mut EachDevice<'_>) -> Result<(), Stop> {
        let _ = each;
        build_error!(kernel::error::VTABLE_DEFAULT_ERROR)
    }

    /// Adapts the limits that the core put together from those of the devices below.
    fn io_hints(&self, limits: &mut Limits) {
        let _ = limits;
        build_error!(kernel::error::VTABLE_DEFAULT_ERROR)
    }
}
