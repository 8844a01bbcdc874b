// SPDX-License-Identifier: GPL-2.0

//! Where the data of a volume are.

use std::collections::{
    btree_map,
    BTreeMap, //
};

/// Data of a volume in a frame of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    /// How many bytes.
    pub(super) len: u64,
    /// Which file.
    pub(super) file: usize,
    /// Where in the file the frame begins.
    pub(super) at: u64,
    /// How many bytes of the frame's data come before.
    pub(super) skip: u64,
}

impl Extent {
    /// What is left without the first bytes.
    fn without(self, bytes: u64) -> Self {
        Self {
            len: self.len.saturating_sub(bytes),
            skip: self.skip.saturating_add(bytes),
            ..self
        }
    }
}

/// Where the data of a volume are: extents by offset, which do not overlap.
#[derive(Default, Debug)]
pub(super) struct Extents {
    map: BTreeMap<u64, Extent>,
}

impl Extents {
    /// Puts an extent in place of what was there.
    pub(super) fn put(&mut self, offset: u64, extent: Extent) {
        self.remove(offset, extent.len);
        self.map.insert(offset, extent);
    }

    /// Makes a hole.
    pub(super) fn remove(&mut self, begin: u64, len: u64) {
        let end = begin.saturating_add(len);
        if let Some((at, extent)) = self.map.range_mut(..begin).next_back() {
            let (at, whole) = (*at, *extent);
            let reaches = at.saturating_add(whole.len);
            if reaches > begin {
                extent.len = begin.saturating_sub(at);
                self.put_back(at, whole, end);
            }
        }
        while let Some((&at, &extent)) = self.map.range(begin..end).next() {
            self.map.remove(&at);
            self.put_back(at, extent, end);
        }
    }

    /// Puts back what an extent has from here on.
    fn put_back(&mut self, at: u64, extent: Extent, end: u64) {
        if at.saturating_add(extent.len) > end {
            self.map.insert(end, extent.without(end.saturating_sub(at)));
        }
    }

    /// How many bytes there are.
    pub(super) fn total(&self) -> u64 {
        self.map
            .values()
            .fold(0, |sum, extent| sum.saturating_add(extent.len))
    }
}

impl IntoIterator for Extents {
    type Item = (u64, Extent);
    type IntoIter = btree_map::IntoIter<u64, Extent>;

    fn into_iter(self) -> Self::IntoIter {
        self.map.into_iter()
    }
}
