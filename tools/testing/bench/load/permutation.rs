// SPDX-License-Identifier: GPL-2.0

//! Numbers in another order.

/// A mixing function, by which all sorts of numbers are derived from a seed; it is one to one.
#[inline]
pub(crate) fn mix(seed: u64) -> u64 {
    let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A permutation of the numbers below some bound that looks random.
///
/// It permutes the numbers of as many bits as the bound needs, by steps each of which is one to one: an addition, a
/// multiplication by an odd number, and `x ^ (x >> n)`. A number that comes out too large goes through it again,
/// until one does not, which a permutation must reach: that happens less than once on average, and never if the bound
/// is a power of two.
pub(crate) struct Permutation {
    bound: u64,
    mask: u64,
    shift: u32,
    keys: [u64; 3],
}

impl Permutation {
    /// Of the numbers below `bound`, which is not zero.
    pub(crate) fn new(bound: u64, seed: u64) -> Self {
        let zeroes = bound.saturating_sub(1).leading_zeros();
        let bits = u64::BITS.saturating_sub(zeroes);
        let key = |i: u64| mix(mix(seed).wrapping_add(i));
        Self {
            bound,
            mask: u64::MAX.checked_shr(zeroes).unwrap_or(0),
            shift: bits.div_ceil(2).max(1),
            keys: [key(1), key(2), key(3)],
        }
    }

    /// Where the number `i` goes; `i` must be below the bound.
    #[inline]
    pub(crate) fn at(&self, i: u64) -> u64 {
        let mut x = i;
        loop {
            x = self.step(x);
            if x < self.bound {
                return x;
            }
        }
    }

    #[inline]
    fn step(&self, x: u64) -> u64 {
        let [a, b, c] = self.keys;
        let x = x.wrapping_add(a) & self.mask;
        let x = (x ^ (x >> self.shift)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let x = x.wrapping_add(b) & self.mask;
        let x = (x ^ (x >> self.shift)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        let x = x.wrapping_add(c) & self.mask;
        x ^ (x >> self.shift)
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_load_permutation)]
mod tests {
    use super::*;
    use kernel::prelude::*;

    /// Whether each number comes out once.
    fn is_permutation(bound: u64, seed: u64) -> Result<bool> {
        let it = Permutation::new(bound, seed);
        let mut seen = KVVec::from_elem(false, bound as usize, GFP_KERNEL)?;
        for i in 0..bound {
            match seen.get_mut(it.at(i) as usize) {
                Some(seen) if !*seen => *seen = true,
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    #[test]
    fn every_number_comes_out_once() -> Result {
        for bound in 1..200 {
            assert!(is_permutation(bound, bound)?);
        }
        for bound in [1 << 12, (1 << 12) + 1, (1 << 13) - 1, 10_007, 1 << 16] {
            for seed in [0, 1, u64::MAX] {
                assert!(is_permutation(bound, seed)?);
            }
        }
        Ok(())
    }

    #[test]
    fn large_bounds() {
        for bound in [1 << 40, (1 << 40) + 12_345, 1 << 63, u64::MAX] {
            let it = Permutation::new(bound, 7);
            for i in 0..1000 {
                assert!(it.at(bound - 1 - i) < bound);
            }
        }
    }

    #[test]
    fn looks_random() {
        let bound = 1 << 15;
        let it = Permutation::new(bound, 3);
        let other = Permutation::new(bound, 4);
        let (mut near, mut same, mut rises, mut halves) = (0, 0, 0, 0);
        for i in 1..bound {
            let (before, now) = (it.at(i - 1), it.at(i));
            near += u64::from(before.abs_diff(now) < 64);
            rises += u64::from(before < now);
            same += u64::from(other.at(i) == now);
            halves += u64::from((before < bound / 2) == (now < bound / 2));
        }
        // For real chance the expectations are 128, 16384, 1 and 16384.
        assert!(near < 512);
        assert!((15_000..18_000).contains(&rises));
        assert!(same < 64);
        assert!((15_000..18_000).contains(&halves));
    }
}
