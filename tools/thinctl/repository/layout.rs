// SPDX-License-Identifier: GPL-2.0

//! Where the data of a volume are.

use std::collections::BTreeMap;

/// Data of a volume in a frame of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    /// How many bytes.
    pub(super) len: u64,
    /// Which file.
    pub(super) file: usize,
    /// Where in the file the frame begins.
    pub(super) at: u64,
    /// How many bytes of the frame's data come before.
    pub(super) skip: u64,
}

impl Piece {
    /// What is left without the first bytes.
    fn without(self, bytes: u64) -> Self {
        Self {
            len: self.len.saturating_sub(bytes),
            skip: self.skip.saturating_add(bytes),
            ..self
        }
    }
}

/// Where the data of a volume are: pieces by offset, which do not overlap.
#[derive(Default, Debug)]
pub(super) struct Layout {
    map: BTreeMap<u64, Piece>,
}

impl Layout {
    /// Puts a piece in place of what was there.
    pub(super) fn put(&mut self, offset: u64, piece: Piece) {
        self.remove(offset, piece.len);
        self.map.insert(offset, piece);
    }

    /// Makes a hole.
    pub(super) fn remove(&mut self, begin: u64, len: u64) {
        let end = begin.saturating_add(len);
        if let Some((at, piece)) = self.map.range_mut(..begin).next_back() {
            let (at, whole) = (*at, *piece);
            let reaches = at.saturating_add(whole.len);
            if reaches > begin {
                piece.len = begin.saturating_sub(at);
                self.put_back(at, whole, end);
            }
        }
        while let Some((&at, &piece)) = self.map.range(begin..end).next() {
            self.map.remove(&at);
            self.put_back(at, piece, end);
        }
    }

    /// Puts back what a piece has from here on.
    fn put_back(&mut self, at: u64, piece: Piece, end: u64) {
        if at.saturating_add(piece.len) > end {
            self.map.insert(end, piece.without(end.saturating_sub(at)));
        }
    }

    /// The pieces by offset.
    pub(super) fn into_map(self) -> BTreeMap<u64, Piece> {
        self.map
    }

    /// How many bytes there are.
    pub(super) fn total(&self) -> u64 {
        self.map
            .values()
            .fold(0, |sum, piece| sum.saturating_add(piece.len))
    }
}
