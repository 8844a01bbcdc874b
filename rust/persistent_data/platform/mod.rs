// SPDX-License-Identifier: GPL-2.0

//! What differs between the kernel and user space.

#[cfg(CONFIG_RUST)]
#[path = "kernel.rs"]
mod imp;

#[cfg(not(CONFIG_RUST))]
#[path = "user.rs"]
mod imp;

pub use imp::*;

use crate::error::{
    Error,
    Result, //
};

/// A growable array whose growth may fail; [`imp::Vec`] in both worlds.
pub trait TryVec<T>: Sized {
    /// An empty array with room for `n` elements.
    fn try_with_room(n: usize) -> Result<Self>;

    /// Makes room for `n` more elements.
    fn try_reserve_room(&mut self, n: usize) -> Result;

    /// Appends `x`.
    fn try_push(&mut self, x: T) -> Result;

    /// An array of `n` times `x`.
    fn try_filled(x: T, n: usize) -> Result<Self>
    where
        T: Clone;
}

/// Moves `x` to the heap.
pub fn try_box<T>(x: T) -> Result<Box<T>> {
    imp::new_box(x).ok_or(Error::NoMemory)
}
