// SPDX-License-Identifier: GPL-2.0

//! The outcome of bios.

use crate::bindings;
use kernel::prelude::*;

/// The outcome of a bio.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlkStatus(pub(crate) bindings::blk_status_t);

impl BlkStatus {
    /// Success.
    pub const OK: Self = Self(0);
    /// EOPNOTSUPP.
    pub const NOTSUPP: Self = Self(bindings::BLK_STS_NOTSUPP);
    /// ETIMEDOUT.
    pub const TIMEOUT: Self = Self(bindings::BLK_STS_TIMEOUT);
    /// ENOSPC.
    pub const NOSPC: Self = Self(bindings::BLK_STS_NOSPC);
    /// EREMOTEIO: the device below refused.
    pub const TARGET: Self = Self(bindings::BLK_STS_TARGET);
    /// ENODATA.
    pub const MEDIUM: Self = Self(bindings::BLK_STS_MEDIUM);
    /// EILSEQ.
    pub const PROTECTION: Self = Self(bindings::BLK_STS_PROTECTION);
    /// ENOMEM.
    pub const RESOURCE: Self = Self(bindings::BLK_STS_RESOURCE);
    /// EIO.
    pub const IOERR: Self = Self(bindings::BLK_STS_IOERR);
    /// The core shall map the bio again, with the table that is live by then. It does so only while the device is
    /// suspended without a flush ([`Ti::is_noflush_suspending`](crate::Ti::is_noflush_suspending)): otherwise the bio
    /// fails with an I/O error.
    pub const DM_REQUEUE: Self = Self(bindings::BLK_STS_DM_REQUEUE);
    /// EAGAIN, for bios that must not wait.
    pub const AGAIN: Self = Self(bindings::BLK_STS_AGAIN);
    /// EINVAL.
    pub const INVAL: Self = Self(bindings::BLK_STS_INVAL);

    /// The status for an error.
    pub fn from_error(err: Error) -> Self {
        // SAFETY: The function takes any number.
        Self(unsafe { bindings::errno_to_blk_status(err.to_errno()) })
    }

    /// The error for a status.
    pub fn to_result(self) -> Result {
        // SAFETY: All statuses come from the kernel.
        kernel::error::to_result(unsafe { bindings::blk_status_to_errno(self.0) })
    }

    /// Whether it is success.
    pub fn is_ok(self) -> bool {
        self == Self::OK
    }
}

impl From<Error> for BlkStatus {
    fn from(err: Error) -> Self {
        Self::from_error(err)
    }
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_blk_status)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_errors() {
        assert!(BlkStatus::from_error(ENOSPC) == BlkStatus::NOSPC);
        assert!(BlkStatus::from_error(EIO) == BlkStatus::IOERR);
        assert!(BlkStatus::NOSPC.to_result() == Err(ENOSPC));
        assert!(BlkStatus::OK.to_result().is_ok() && BlkStatus::OK.is_ok());
    }
}
