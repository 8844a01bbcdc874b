// SPDX-License-Identifier: GPL-2.0

//! Deleting whole trees.

use zerocopy::little_endian::U64;

use super::{
    cursor::Leaves,
    node::Node,
    value::for_runs,
    Tree,
    Value,
    ValueType,
    MAX_DEPTH,
    VALIDATOR, //
};
use crate::{
    block::BlockNr,
    block_manager::{
        BlockManager,
        Guard,
        ReadGuard, //
    },
    error::{
        Corruption,
        Error,
        Result, //
    },
    platform::{
        TryVec,
        Vec, //
    },
    transaction::Transaction,
};

impl<V: Value, const L: usize> Tree<V, L> {
    /// Takes one owner from the tree. If it was the last, so do all nodes and trees of lower levels that
    /// nothing else shares, and their values.
    pub fn delete<'b, T: Transaction<'b>, VT: ValueType<Value = V>>(
        self,
        tx: &mut T,
        vt: &mut VT,
    ) -> Result {
        let mut deletion = Deletion {
            tx,
            vt,
            nr_levels: L,
            stack: Vec::new(),
            counted: None,
        };
        deletion.run(self.root())
    }
}

/// Deletes a part of a tree of one level, and returns how many entries it held.
pub(super) fn delete_counted<'b, T: Transaction<'b>, VT: ValueType>(
    tx: &mut T,
    vt: &mut VT,
    root: BlockNr,
) -> Result<u64> {
    let mut deletion = Deletion {
        tx,
        vt,
        nr_levels: 1,
        stack: Vec::new(),
        counted: Some(0),
    };
    deletion.run(root)?;
    Ok(deletion.counted.unwrap_or(0))
}

/// A node whose children are being deleted: an internal one, or a leaf of an upper level.
struct Frame<'b, B: BlockManager + 'b> {
    guard: ReadGuard<'b, B>,
    level: usize,
    depth: usize,
    next: usize,
}

struct Deletion<'t, 'b, T: Transaction<'b>, VT> {
    tx: &'t mut T,
    vt: &'t mut VT,
    nr_levels: usize,
    /// The way from the top to where the deletion is, at most [`MAX_DEPTH`] nodes for each level.
    stack: Vec<Frame<'b, T::Bm>>,
    /// How many entries were deleted, if that matters.
    counted: Option<u64>,
}

impl<'b, T: Transaction<'b>, VT: ValueType> Deletion<'_, 'b, T, VT> {
    fn run(&mut self, root: BlockNr) -> Result {
        self.visit(root, 0, 0)?;
        while let Some(frame) = self.stack.last_mut() {
            let block = frame.guard.location();
            // A leaf's children are the roots of the next level.
            let (child, level, depth) = match Node::<U64>::new(&frame.guard, block)? {
                Node::Internal(entries) => (entries.get(frame.next), frame.level, frame.depth + 1),
                Node::Leaf(entries) => (entries.get(frame.next), frame.level + 1, 0),
            };
            frame.next += 1;
            match child {
                Some((_, child)) => self.visit(child.get(), level, depth)?,
                None => {
                    self.stack.pop();
                    self.tx.dec(block..block + 1)?;
                }
            }
        }
        Ok(())
    }

    /// Takes one reference from a node; goes into it if that was the last.
    fn visit(&mut self, block: BlockNr, level: usize, depth: usize) -> Result {
        if depth >= MAX_DEPTH {
            return Err(Error::Corrupt(block, Corruption::TooDeep));
        }
        let end = block.checked_add(1).ok_or(Error::OutOfBounds(block))?;
        match self.tx.ref_count(block)? {
            0 => return Err(Error::RefCount(block)),
            1 => (),
            _ => {
                if let Some(counted) = &mut self.counted {
                    *counted += count_entries::<VT::Value, _>(self.tx.bm(), block)?;
                }
                return self.tx.dec(block..end);
            }
        }

        let bm = self.tx.bm();
        let guard = bm.read(block, &VALIDATOR)?;
        if level + 1 >= self.nr_levels {
            if let Node::Leaf(entries) = Node::<VT::Value>::new(&guard, block)? {
                if let Some(counted) = &mut self.counted {
                    *counted += entries.values.len() as u64;
                }
                self.vt.dec(self.tx, entries.values)?;
                return self.tx.dec(block..end);
            }
        }
        let children = match Node::<U64>::new(&guard, block)? {
            Node::Internal(entries) | Node::Leaf(entries) => entries.values,
        };
        for_runs(children.iter().map(|child| child.get()), |run| {
            bm.prefetch_run(run);
            Ok(())
        })?;
        self.stack.try_push(Frame {
            guard,
            level,
            depth,
            next: 0,
        })
    }
}

/// How many entries are in the part of a tree of one level under `root`.
fn count_entries<'b, V: Value, B: BlockManager + 'b>(bm: &'b B, root: BlockNr) -> Result<u64> {
    let mut leaves = Leaves::<&'b B, V>::new(bm, root, true);
    let mut counted = 0;
    while let Some(leaf) = leaves.next()? {
        let block = leaf.location();
        if let Node::Leaf(entries) = Node::<V>::new(&leaf, block)? {
            counted += entries.values.len() as u64;
        }
    }
    Ok(counted)
}
