// SPDX-License-Identifier: GPL-2.0

//! The bios of thin devices: what tells them apart, and where they go.

use std::{
    collections::VecDeque,
    ops::Range, //
};
use thin_metadata::VirtualBlock;

/// A bio of a thin device.
#[derive(Debug)]
pub(crate) struct ThinBio {
    /// When it came.
    pub(crate) number: usize,
    pub(crate) device: u64,
    pub(crate) blocks: Range<VirtualBlock>,
}

/// A list of such bios.
#[derive(Default)]
pub(crate) struct ThinBios(VecDeque<ThinBio>);

impl ThinBios {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn push(&mut self, bio: ThinBio) {
        self.0.push_back(bio);
    }

    pub(crate) fn pop(&mut self) -> Option<ThinBio> {
        self.0.pop_front()
    }
}
