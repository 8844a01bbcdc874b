// SPDX-License-Identifier: GPL-2.0

//! The colours of a map.

use std::fmt;

use crate::map::Cell;

/// A colour: red, green, blue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Colour(pub u8, pub u8, pub u8);

/// Of what is free.
pub const FREE: Colour = Colour(0xec, 0xec, 0xec);

/// Of what several volumes use.
pub const SHARED: Colour = Colour(0x50, 0x58, 0x68);

impl Colour {
    /// Of what only that volume uses: a hue that is far away from those of the ids before and after.
    pub fn of_volume(id: u64) -> Self {
        // Multiples of the golden angle, in degrees. The remainder keeps the product exact.
        let hue = (id % 360_000).wrapping_mul(137_508) % 360_000;
        let hue = hue as f64 / 1000.0;
        let channel = |at: f64| {
            let distance = ((hue - at).abs()).min(360.0 - (hue - at).abs());
            let level = (2.0 - distance / 60.0).clamp(0.0, 1.0);
            (40.0 + 170.0 * level) as u8
        };
        Self(channel(0.0), channel(120.0), channel(240.0))
    }

    /// Of a cell: a mixture of what its blocks are. What there is at all can be seen.
    pub fn of_cell(cell: &Cell) -> Self {
        let weight = |n: u64| match n {
            0 => 0.0,
            n => (n as f64 / cell.blocks.max(1) as f64).max(0.25),
        };
        let free = cell
            .blocks
            .saturating_sub(cell.exclusive)
            .saturating_sub(cell.shared);
        let own = cell.volume.map_or(FREE, Self::of_volume);
        let parts = [
            (FREE, free as f64 / cell.blocks.max(1) as f64),
            (SHARED, weight(cell.shared)),
            (own, weight(cell.exclusive)),
        ];
        let total: f64 = parts.iter().map(|(_, weight)| weight).sum();
        if total <= 0.0 {
            return FREE;
        }
        let mix = |channel: fn(&Self) -> u8| {
            let sum: f64 = parts.iter().map(|(c, w)| f64::from(channel(c)) * w).sum();
            // An average of bytes is one.
            (sum / total).round() as u8
        };
        Self(mix(|c| c.0), mix(|c| c.1), mix(|c| c.2))
    }
}

/// As in CSS.
impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(exclusive: u64, shared: u64) -> Cell {
        Cell {
            blocks: 1000,
            exclusive,
            shared,
            volume: (exclusive > 0).then_some(3),
        }
    }

    #[test]
    fn cells_have_the_colour_of_what_they_are() {
        let own = Colour::of_volume(3);
        assert_eq!(Colour::of_cell(&cell(0, 0)), FREE);
        assert_eq!(Colour::of_cell(&cell(1000, 0)), own);
        assert_eq!(Colour::of_cell(&cell(0, 1000)), SHARED);
        assert_eq!(Colour::of_cell(&Cell::default()), FREE);
        let half = Colour::of_cell(&cell(500, 500));
        let mean = |a: u8, b: u8| (f64::from(a) + f64::from(b)) / 2.0;
        assert_eq!(half.0, mean(own.0, SHARED.0).round() as u8);
        assert_eq!(half.2, mean(own.2, SHARED.2).round() as u8);
    }

    #[test]
    fn a_single_block_can_be_seen() {
        for one in [cell(1, 0), cell(0, 1)] {
            let colour = Colour::of_cell(&one);
            assert!(colour.0.abs_diff(FREE.0) >= 10 || colour.1.abs_diff(FREE.1) >= 10);
        }
    }

    #[test]
    fn volumes_can_be_told_apart() {
        let colours: Vec<_> = (0..12).map(Colour::of_volume).collect();
        for (i, a) in colours.iter().enumerate() {
            for b in colours.iter().skip(i + 1) {
                let difference = [(a.0, b.0), (a.1, b.1), (a.2, b.2)]
                    .iter()
                    .map(|(a, b)| u32::from(a.abs_diff(*b)))
                    .sum::<u32>();
                assert!(difference > 30, "{a} {b}");
            }
        }
        Colour::of_volume(u64::MAX);
    }
}
