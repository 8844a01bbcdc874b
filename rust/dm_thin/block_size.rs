// SPDX-License-Identifier: GPL-2.0

//! The size of data blocks, and what follows from it.

use core::num::{
    NonZeroU32,
    NonZeroU64, //
};

/// A data block's size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlockSize {
    sectors: NonZeroU32,
    /// log2 of `sectors`, where that is a whole number: shifts are cheaper than divisions.
    shift: Option<u32>,
}

impl BlockSize {
    /// The smallest and the unit of all sizes, in sectors: 64 KiB.
    pub(crate) const MIN_SECTORS: u64 = 128;
    /// The largest size in sectors: 1 GiB.
    pub(crate) const MAX_SECTORS: u64 = 2 * 1024 * 1024;

    /// A block size of `sectors`, if that is one.
    pub(crate) fn new(sectors: u64) -> Option<Self> {
        if !(Self::MIN_SECTORS..=Self::MAX_SECTORS).contains(&sectors)
            || !sectors.is_multiple_of(Self::MIN_SECTORS)
        {
            return None;
        }
        let sectors = NonZeroU32::new(u32::try_from(sectors).ok()?)?;
        Some(Self {
            sectors,
            shift: sectors.is_power_of_two().then(|| sectors.ilog2()),
        })
    }

    /// In sectors of 512 bytes.
    pub(crate) fn sectors(self) -> u32 {
        self.sectors.get()
    }

    /// In bytes.
    pub(crate) fn bytes(self) -> u64 {
        u64::from(self.sectors.get()) << 9
    }

    /// The block that holds `sector`.
    #[inline]
    pub(crate) fn block_of(self, sector: u64) -> u64 {
        match self.shift {
            Some(shift) => sector >> shift,
            None => sector / NonZeroU64::from(self.sectors),
        }
    }

    /// Where in its block `sector` lies.
    #[inline]
    pub(crate) fn offset_of(self, sector: u64) -> u64 {
        match self.shift {
            Some(shift) => sector & ((1 << shift) - 1),
            None => sector % NonZeroU64::from(self.sectors),
        }
    }

    /// The number of sectors in `blocks`; saturates beyond what any device holds.
    #[inline]
    pub(crate) fn to_sectors(self, blocks: u64) -> u64 {
        blocks.saturating_mul(u64::from(self.sectors.get()))
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_thin_block_size)]
mod tests {
    use super::*;
    use kernel::prelude::*;

    #[test]
    fn limits() {
        for bad in [0, 1, 127, 192, 128 + 64, 2097153, u64::MAX] {
            assert!(BlockSize::new(bad).is_none());
        }
        for good in [128, 256, 384, 2097152] {
            assert!(BlockSize::new(good).is_some());
        }
    }

    #[test]
    fn shift_and_division_agree() -> Result {
        for sectors in [128, 384, 1024] {
            let size = BlockSize::new(sectors).ok_or(EINVAL)?;
            for sector in [0, 1, 127, 128, 383, 384, 1023, 1024, 1 << 40] {
                assert_eq!(size.block_of(sector), sector / sectors);
                assert_eq!(size.offset_of(sector), sector % sectors);
            }
        }
        Ok(())
    }
}
