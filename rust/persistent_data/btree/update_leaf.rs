// SPDX-License-Identifier: GPL-2.0

//! Changing neighbouring values together.

use core::ops::Range;

use super::{
    node::{
        Kind,
        NodeMut, //
    },
    shadow::{
        shadow,
        shadow_child, //
    },
    Tree,
    Value,
    ValueType,
    MAX_DEPTH, //
};
use crate::{
    block_manager::Guard,
    error::{
        Corruption,
        Error,
        Result, //
    },
    transaction::Transaction,
};

impl<V: Value> Tree<V, 1> {
    /// Changes, in place by `f`, the values of those of `keys` that are in the one leaf where the first of
    /// `keys` is or would be. `f` gets them in ascending order.
    ///
    /// What the values own is up to `f`. Returns how many there were, which may be none.
    pub fn update_leaf<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        &mut self,
        tx: &mut T,
        vt: &mut VT,
        keys: Range<u64>,
        mut f: impl FnMut(u64, &mut V) -> Result,
    ) -> Result<usize> {
        let mut guard = shadow(tx, vt, self.root())?;
        *self = Self::from_root(guard.location());
        for _ in 0..MAX_DEPTH {
            let block = guard.location();
            let mut node = NodeMut::new(&mut guard, block)?;
            if node.shape().kind == Kind::Leaf {
                let found = node.ceil(keys.start)..node.ceil(keys.end);
                for index in found.clone() {
                    let key = node.keys().get(index).map(|k| k.get());
                    let value = node.values::<V>()?.get(index).copied();
                    if let (Some(key), Some(mut value)) = (key, value) {
                        f(key, &mut value)?;
                        node.set_value(index, &value)?;
                    }
                }
                return Ok(found.len());
            }
            let Some(index) = node.floor(keys.start) else {
                return Ok(0);
            };
            guard = shadow_child(tx, vt, &mut node, index)?;
        }
        Err(Error::Corrupt(self.root(), Corruption::TooDeep))
    }
}
