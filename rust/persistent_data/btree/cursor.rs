// SPDX-License-Identifier: GPL-2.0

//! Going through entries in the order of their keys.

use core::marker::PhantomData;

use zerocopy::little_endian::U64;

use super::{
    node::Node,
    Tree,
    Value,
    MAX_DEPTH,
    VALIDATOR, //
};
use crate::{
    block::BlockNr,
    block_manager::{
        BlockManager,
        Guard,
        ReadGuard,
        Reader, //
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
};

impl<V: Value, const L: usize> Tree<V, L> {
    /// Calls `f` for each entry, in the order of the keys.
    pub fn walk<'b, R: Reader<'b>>(
        &self,
        reader: R,
        f: &mut dyn FnMut(&[u64; L], &V) -> Result,
    ) -> Result {
        let mut keys = [0; L];
        let Some(nr_upper) = L.checked_sub(1) else {
            return Err(Error::Invalid);
        };
        let mut upper: Vec<Scan<'b, R, U64>> = Vec::new();
        let mut root = self.root();
        loop {
            // Go down from `root`, unless a tree on the way is empty.
            while upper.len() < nr_upper {
                let scan = Scan::new(reader, root, true)?;
                let Some((key, inner)) = scan.get() else {
                    break;
                };
                if let Some(k) = keys.get_mut(upper.len()) {
                    *k = key;
                }
                upper.try_push(scan)?;
                root = inner.get();
            }
            if upper.len() == nr_upper {
                let mut scan = Scan::<R, V>::new(reader, root, true)?;
                while let Some((key, value)) = scan.get() {
                    if let Some(k) = keys.last_mut() {
                        *k = key;
                    }
                    f(&keys, &value)?;
                    scan.next()?;
                }
            }
            // Go on to the next entry of the upper levels.
            loop {
                let Some(scan) = upper.last_mut() else {
                    return Ok(());
                };
                scan.next()?;
                let entry = scan.get();
                if let Some((key, inner)) = entry {
                    if let Some(k) = upper.len().checked_sub(1).and_then(|i| keys.get_mut(i)) {
                        *k = key;
                    }
                    root = inner.get();
                    break;
                }
                upper.pop();
            }
        }
    }
}

impl<V: Value> Tree<V, 1> {
    /// A cursor at the lowest key. With `prefetch`, all children of a node are read ahead once the node is
    /// entered.
    pub fn cursor<'b, B: BlockManager>(
        &self,
        bm: &'b B,
        prefetch: bool,
    ) -> Result<Cursor<'b, B, V>> {
        Ok(Cursor {
            scan: Scan::new(bm, self.root(), prefetch)?,
        })
    }
}

impl Tree<U64, 1> {
    /// A cursor at the lowest key of a tree whose values are metadata blocks: once a leaf is entered, those
    /// that it names are read ahead, too.
    pub fn block_cursor<'b, B: BlockManager>(&self, bm: &'b B) -> Result<Cursor<'b, B, U64>> {
        let read_ahead = |bm: &'b B, blocks: &[U64]| {
            blocks.iter().for_each(|block| bm.prefetch(block.get()));
        };
        Ok(Cursor {
            scan: Scan::with(bm, self.root(), true, read_ahead)?,
        })
    }
}

/// A place in a tree of one level, which moves towards the highest key.
///
/// After an error it is at the end.
pub struct Cursor<'b, B: BlockManager, V> {
    scan: Scan<'b, &'b B, V>,
}

impl<'b, B: BlockManager, V: Value> Cursor<'b, B, V> {
    /// The entry, or `None` at the end.
    pub fn get(&self) -> Option<(u64, V)> {
        self.scan.get()
    }

    /// Goes on to the next entry; stays at the end.
    #[expect(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result {
        self.scan.next()
    }

    /// Goes on by `n` entries, or to the end; leaves that are skipped are read, but not looked into.
    pub fn skip(&mut self, n: u64) -> Result {
        self.scan.skip(n)
    }
}

/// A place in a tree of one level, in a leaf that is held.
pub(crate) struct Scan<'b, R: Reader<'b>, V> {
    leaves: Leaves<'b, R, V>,
    leaf: Option<ReadGuard<'b, R::Bm>>,
    index: usize,
    len: usize,
    entry: Option<(u64, V)>,
    /// What to do with the values of a leaf that is entered.
    on_leaf: fn(R, &[V]),
}

impl<'b, R: Reader<'b>, V: Value> Scan<'b, R, V> {
    /// The lowest key of the tree with that root.
    pub(crate) fn new(reader: R, root: BlockNr, prefetch: bool) -> Result<Self> {
        Self::with(reader, root, prefetch, |_, _| ())
    }

    fn with(reader: R, root: BlockNr, prefetch: bool, on_leaf: fn(R, &[V])) -> Result<Self> {
        let mut scan = Self {
            leaves: Leaves::new(reader, root, prefetch),
            leaf: None,
            index: 0,
            len: 0,
            entry: None,
            on_leaf,
        };
        scan.next_leaf()?;
        scan.load()?;
        Ok(scan)
    }

    /// The entry, or `None` at the end.
    pub(crate) fn get(&self) -> Option<(u64, V)> {
        self.entry
    }

    /// Goes on to the next entry.
    pub(crate) fn next(&mut self) -> Result {
        self.skip(1)
    }

    /// Goes on by `n` entries.
    pub(crate) fn skip(&mut self, mut n: u64) -> Result {
        self.entry = None;
        while self.leaf.is_some() {
            let rest = (self.len - self.index) as u64;
            if n < rest {
                self.index += n as usize;
                break;
            }
            n -= rest;
            self.next_leaf()?;
        }
        self.load()
    }

    fn next_leaf(&mut self) -> Result {
        self.leaf = None;
        self.index = 0;
        self.len = 0;
        if let Some(leaf) = self.leaves.next()? {
            let block = leaf.location();
            if let Node::Leaf(entries) = Node::<V>::new(&leaf, block)? {
                self.len = entries.keys.len();
                (self.on_leaf)(self.leaves.reader, entries.values);
            }
            self.leaf = Some(leaf);
        }
        Ok(())
    }

    fn load(&mut self) -> Result {
        self.entry = None;
        if let Some(leaf) = &self.leaf {
            let block = leaf.location();
            if let Node::Leaf(entries) = Node::<V>::new(leaf, block)? {
                self.entry = entries.get(self.index);
            }
        }
        Ok(())
    }
}

/// An internal node that a walk is in.
struct Frame<'b, R: Reader<'b>> {
    guard: ReadGuard<'b, R::Bm>,
    next: usize,
}

/// The leaves of one level, in order.
pub(crate) struct Leaves<'b, R: Reader<'b>, V> {
    reader: R,
    root: Option<BlockNr>,
    prefetch: bool,
    /// The internal nodes on the way to the leaf, at most [`MAX_DEPTH`].
    stack: Vec<Frame<'b, R>>,
    /// The highest key seen. As keys must ascend, nothing can be visited twice.
    highest: Option<u64>,
    _values: PhantomData<V>,
}

impl<'b, R: Reader<'b>, V: Value> Leaves<'b, R, V> {
    /// All leaves under `root`.
    pub(crate) fn new(reader: R, root: BlockNr, prefetch: bool) -> Self {
        Self {
            reader,
            root: Some(root),
            prefetch,
            stack: Vec::new(),
            highest: None,
            _values: PhantomData,
        }
    }

    /// The next leaf, or `None` after the last one. Only a root comes without entries.
    pub(crate) fn next(&mut self) -> Result<Option<ReadGuard<'b, R::Bm>>> {
        let Some(mut block) = self.next_child()? else {
            return Ok(None);
        };
        loop {
            let guard = self.reader.read(block, &VALIDATOR)?;
            match Node::<V>::new(&guard, block)? {
                Node::Leaf(entries) => {
                    if let (Some(first), Some(last)) = (entries.keys.first(), entries.keys.last()) {
                        if self.highest.is_some_and(|highest| first.get() <= highest) {
                            return Err(Error::Corrupt(block, Corruption::KeyOrder));
                        }
                        self.highest = Some(last.get());
                    } else if !self.stack.is_empty() {
                        return Err(Error::Corrupt(block, Corruption::EmptyNode));
                    }
                    return Ok(Some(guard));
                }
                Node::Internal(entries) => {
                    if self.stack.len() >= MAX_DEPTH {
                        return Err(Error::Corrupt(block, Corruption::TooDeep));
                    }
                    if self.prefetch {
                        for child in entries.values {
                            self.reader.prefetch(child.get());
                        }
                    }
                    let Some(first) = entries.values.first() else {
                        return Err(Error::Corrupt(block, Corruption::EmptyNode));
                    };
                    block = first.get();
                    self.stack.try_push(Frame { guard, next: 1 })?;
                }
            }
        }
    }

    /// The next child of the innermost node that has one left.
    fn next_child(&mut self) -> Result<Option<BlockNr>> {
        if let Some(root) = self.root.take() {
            return Ok(Some(root));
        }
        while let Some(frame) = self.stack.last_mut() {
            let block = frame.guard.location();
            if let Node::Internal(entries) = Node::<V>::new(&frame.guard, block)? {
                if let Some(child) = entries.values.get(frame.next) {
                    frame.next += 1;
                    return Ok(Some(child.get()));
                }
            }
            self.stack.pop();
        }
        Ok(None)
    }
}
