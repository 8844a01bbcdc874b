// SPDX-License-Identifier: GPL-2.0

//! The kernel's red-black tree, as far as the cells use it.

use crate::prelude::Result;
use std::collections::BTreeMap;

/// A map with ordered keys.
pub(crate) struct RBTree<K, V>(BTreeMap<K, V>);

/// An entry of a tree.
pub(crate) struct CursorMut<'a, K, V>(&'a K, &'a mut V);

impl<K: Ord, V> RBTree<K, V> {
    pub(crate) fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key)
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.0.remove(key)
    }

    pub(crate) fn try_create_and_insert(&mut self, key: K, value: V, (): ()) -> Result<Option<V>> {
        Ok(self.0.insert(key, value))
    }

    /// The first entry whose key is at least `key`.
    pub(crate) fn cursor_lower_bound_mut(&mut self, key: &K) -> Option<CursorMut<'_, K, V>> {
        let (key, value) = self.0.range_mut(key..).next()?;
        Some(CursorMut(key, value))
    }
}

impl<K, V> CursorMut<'_, K, V> {
    pub(crate) fn current_mut(&mut self) -> (&K, &mut V) {
        (self.0, self.1)
    }
}
