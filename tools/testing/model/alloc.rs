// SPDX-License-Identifier: GPL-2.0

//! As much of `kernel::alloc` as is needed. There is always memory.

use crate::prelude::Result;
use std::ops::BitOr;

/// How memory is asked for, which makes no difference here.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Flags;

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, _: Self) -> Self {
        self
    }
}

pub(crate) mod flags {
    use super::Flags;

    pub(crate) const GFP_KERNEL: Flags = Flags;
    pub(crate) const GFP_NOWAIT: Flags = Flags;
    pub(crate) const __GFP_NOWARN: Flags = Flags;
}

/// A vector.
pub(crate) struct KVec<T>(Vec<T>);

impl<T> KVec<T> {
    pub(crate) fn with_capacity(capacity: usize, _: Flags) -> Result<Self> {
        Ok(Self(Vec::with_capacity(capacity)))
    }

    pub(crate) fn push(&mut self, value: T, _: Flags) -> Result {
        self.0.push(value);
        Ok(())
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        self.0.pop()
    }

    pub(crate) fn push_within_capacity(&mut self, value: T) -> Result<(), T> {
        match self.0.len() < self.0.capacity() {
            true => self.0.push(value),
            false => return Err(value),
        }
        Ok(())
    }
}
