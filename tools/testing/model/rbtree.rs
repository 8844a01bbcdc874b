// SPDX-License-Identifier: GPL-2.0

//! The kernel's red-black tree, as far as the cells use it.

use crate::{
    alloc::Flags,
    prelude::Result, //
};
use std::{
    collections::BTreeMap,
    marker::PhantomData, //
};

/// A map with ordered keys.
pub(crate) struct RBTree<K, V>(BTreeMap<K, V>);

/// An entry of a tree.
pub(crate) struct CursorMut<'a, K, V>(&'a K, &'a mut V);

/// An entry that was looked for.
pub(crate) struct OccupiedEntry<'a, K, V> {
    tree: &'a mut BTreeMap<K, V>,
    key: K,
}

/// A key and a value that are in no tree.
pub(crate) struct RBTreeNode<K, V>(K, V);

/// Memory for such.
pub(crate) struct RBTreeNodeReservation<K, V>(PhantomData<(K, V)>);

impl<K: Ord + Copy, V> RBTree<K, V> {
    pub(crate) fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key)
    }

    pub(crate) fn find_mut(&mut self, key: &K) -> Option<OccupiedEntry<'_, K, V>> {
        self.0.contains_key(key).then_some(OccupiedEntry {
            tree: &mut self.0,
            key: *key,
        })
    }

    pub(crate) fn insert(&mut self, RBTreeNode(key, value): RBTreeNode<K, V>) {
        self.0.insert(key, value);
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

impl<K: Ord, V> OccupiedEntry<'_, K, V> {
    pub(crate) fn get_mut(&mut self) -> &mut V {
        self.tree.get_mut(&self.key).unwrap()
    }

    pub(crate) fn remove_node(self) -> RBTreeNode<K, V> {
        let value = self.tree.remove(&self.key).unwrap();
        RBTreeNode(self.key, value)
    }
}

impl<K, V> RBTreeNode<K, V> {
    pub(crate) fn into_reservation(self) -> RBTreeNodeReservation<K, V> {
        RBTreeNodeReservation(PhantomData)
    }
}

impl<K, V> RBTreeNodeReservation<K, V> {
    pub(crate) fn new(_: Flags) -> Result<Self> {
        Ok(Self(PhantomData))
    }

    pub(crate) fn into_node(self, key: K, value: V) -> RBTreeNode<K, V> {
        RBTreeNode(key, value)
    }
}
