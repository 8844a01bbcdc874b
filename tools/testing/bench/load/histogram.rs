// SPDX-License-Identifier: GPL-2.0

//! How often which values occurred.

use kernel::prelude::*;

/// Counts values in buckets, of which there are 64 for each power of two, so they tell a value to 1.6 %; small ones
/// exactly.
pub(crate) struct Histogram {
    buckets: KVVec<u64>,
    count: u64,
    min: u64,
    max: u64,
}

/// Buckets for each power of two, as a shift.
const SHIFT: u32 = 6;
const BUCKETS: usize = ((u64::BITS - SHIFT + 1) << SHIFT) as usize;

/// The bucket of a value.
#[inline]
fn bucket(value: u64) -> usize {
    // Values below 2 << SHIFT are buckets of their own.
    let scale = (u64::BITS - SHIFT - 1).saturating_sub((value | 1).leading_zeros());
    ((u64::from(scale) << SHIFT) + (value >> scale)) as usize
}

/// The largest value of a bucket.
fn largest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let scale = (bucket >> SHIFT).saturating_sub(1);
    let mantissa = bucket - (scale << SHIFT);
    ((mantissa + 1) << scale).wrapping_sub(1)
}

impl Histogram {
    /// Without values so far.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            buckets: KVVec::from_elem(0, BUCKETS, GFP_KERNEL)?,
            count: 0,
            min: u64::MAX,
            max: 0,
        })
    }

    /// Counts a value.
    #[inline]
    pub(crate) fn add(&mut self, value: u64) {
        // There is a bucket for every value.
        if let Some(n) = self.buckets.get_mut(bucket(value)) {
            *n = n.wrapping_add(1);
        }
        self.count = self.count.wrapping_add(1);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Counts what another one has.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (n, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *n = n.wrapping_add(*more);
        }
        self.count = self.count.wrapping_add(other.count);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// The smallest value; zero if there is none.
    pub(crate) fn min(&self) -> u64 {
        self.min.min(self.max)
    }

    /// The largest value; zero if there is none.
    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// The value that `permille` of a thousand values do not exceed, up to 1.6 % too large; zero if there is none.
    pub(crate) fn permille(&self, permille: u32) -> u64 {
        // That is a thousandth of `count * permille`, without the large product.
        let permille = u64::from(permille.min(1000));
        let wanted = self.count / 1000 * permille + (self.count % 1000 * permille).div_ceil(1000);
        let mut seen = 0u64;
        for (i, &n) in self.buckets.iter().enumerate() {
            seen = seen.saturating_add(n);
            if n != 0 && seen >= wanted {
                return largest(i).clamp(self.min(), self.max);
            }
        }
        self.max
    }
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_load_histogram)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other() {
        assert_eq!(bucket(0), 0);
        for i in 0..BUCKETS - 1 {
            assert_eq!(bucket(largest(i)), i);
            assert_eq!(bucket(largest(i) + 1), i + 1);
        }
        assert_eq!(largest(BUCKETS - 1), u64::MAX);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn buckets_are_narrow() {
        for i in 1..BUCKETS {
            let (below, largest) = (largest(i - 1), largest(i));
            assert!((largest - below - 1) <= largest / 64);
        }
    }

    #[test]
    fn percentiles() -> Result {
        let mut all = Histogram::new()?;
        for i in (1..=1000).rev() {
            all.add(i * 1000);
        }
        assert_eq!(all.min(), 1000);
        assert_eq!(all.max(), 1_000_000);
        for permille in [1, 500, 990, 999, 1000] {
            let exact = u64::from(permille) * 1000;
            let told = all.permille(permille);
            assert!((exact..=exact + exact / 64).contains(&told));
        }
        assert_eq!(all.permille(1000), 1_000_000);
        Ok(())
    }

    #[test]
    fn of_nothing_all_is_zero() -> Result {
        let none = Histogram::new()?;
        assert!((none.min(), none.max(), none.permille(500)) == (0, 0, 0));
        Ok(())
    }

    #[test]
    fn merging_is_counting() -> Result {
        let (mut a, mut b, mut both) = (Histogram::new()?, Histogram::new()?, Histogram::new()?);
        for i in 0..500u64 {
            a.add(i * i);
            b.add(i * 1001);
            both.add(i * i);
            both.add(i * 1001);
        }
        a.merge(&b);
        for permille in [1, 100, 500, 999] {
            assert_eq!(a.permille(permille), both.permille(permille));
        }
        assert!((a.min(), a.max()) == (both.min(), both.max()));
        a.merge(&Histogram::new()?);
        assert!((a.min(), a.max()) == (both.min(), both.max()));
        Ok(())
    }
}
