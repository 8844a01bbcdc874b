// SPDX-License-Identifier: GPL-2.0

//! One mapping of a volume, and what is done with it: the protocol of the mapping cache.
//!
//! - A bio enters the set, then looks into the cache. If that does not know, it looks the mapping up under the read
//!   lock, and tells the cache before it gives the lock back. It uses the block, and leaves. With FUA it asks, when it
//!   has found its mapping, whether that is committed.
//! - A change has the write lock when it changes the mapping and what the cache knows of it. Then it waits for the bios
//!   that had entered, and the old block belongs to somebody else.
//! - An eviction takes what the cache knows away, at any time.

use crate::{
    percpu::run_on,
    sync::atomic::{
        ordering::Relaxed,
        Atomic, //
    },
};
use loom::{
    cell::Cell,
    sync::{
        Condvar,
        Mutex,
        RwLock, //
    },
};
use std::{
    pin::Pin,
    sync::Arc, //
};

/// The set of bios in flight, with somebody who waits for it.
pub(crate) trait Set: Send + Sync + 'static {
    type Epoch: Send;

    fn make() -> Pin<Arc<Self>>;
    fn enter(&self) -> Self::Epoch;
    fn leave(&self, epoch: Self::Epoch);
    fn quiesce(&self);
}

/// A worker: whoever wakes it has its work enqueued, which is so once at the most.
pub(crate) struct Worker {
    enqueued: Mutex<bool>,
    work: Condvar,
}

impl Worker {
    pub(crate) fn new() -> Self {
        Self {
            enqueued: Mutex::new(false),
            work: Condvar::new(),
        }
    }

    pub(crate) fn wake(&self) {
        *self.enqueued.lock().unwrap() = true;
        self.work.notify_one();
    }

    /// Looks, and looks again each time that it is woken.
    pub(crate) fn wait_until(&self, is_done: impl Fn() -> bool) {
        while !is_done() {
            let mut enqueued = self.enqueued.lock().unwrap();
            while !*enqueued {
                enqueued = self.work.wait(enqueued).unwrap();
            }
            *enqueued = false;
        }
    }
}

/// The cache of mappings, of which one is in use.
pub(crate) trait Cache: Send + Sync + 'static {
    fn make() -> Pin<Arc<Self>>;
    fn get(&self) -> Option<Option<usize>>;
    fn put(&self, block: Option<usize>);
    fn forget(&self);
    fn evict(&self);
    fn is_committed(&self) -> bool;
    fn set_uncommitted(&self);
    fn set_committed(&self);
}

/// What is played through: the module's sources, or a mutant of them.
pub(crate) trait Parts: 'static {
    type Set: Set;
    type Cache: Cache;
}

/// What bios enter, and the worker turns.
macro_rules! impl_in_flight {
    ($($module:ident)::+) => {
        impl $crate::protocol::Set for ($crate::$($module)::+::InFlight, $crate::protocol::Worker) {
            type Epoch = $crate::$($module)::+::Epoch;

            fn make() -> ::std::pin::Pin<::std::sync::Arc<Self>> {
                let set = $crate::$($module)::+::InFlight::new();
                let set = set.unwrap_or_else(|_| unreachable!());
                ::std::sync::Arc::pin((set, $crate::protocol::Worker::new()))
            }

            fn enter(&self) -> Self::Epoch {
                self.0.enter(|| self.1.wake())
            }

            fn leave(&self, epoch: Self::Epoch) {
                self.0.leave(epoch, || self.1.wake())
            }

            fn quiesce(&self) {
                self.0.turn();
                self.1.wait_until(|| self.0.is_drained());
            }
        }
    };
}
pub(crate) use impl_in_flight;

/// What is held while a thread waits for it.
macro_rules! impl_hold_set {
    ($($module:ident)::+) => {
        impl $crate::protocol::Set for $crate::$($module)::+::HoldSet {
            type Epoch = $crate::in_flight::Epoch;

            fn make() -> ::std::pin::Pin<::std::sync::Arc<Self>> {
                ::pinned_init::InPlaceInit::try_pin_init(Self::new())
                    .unwrap_or_else(|_: $crate::prelude::Error| unreachable!())
            }

            fn enter(&self) -> Self::Epoch {
                self.enter()
            }

            fn leave(&self, epoch: Self::Epoch) {
                self.leave(epoch)
            }

            fn quiesce(&self) {
                self.wait()
            }
        }
    };
}
pub(crate) use impl_hold_set;

macro_rules! impl_cache {
    ($($module:ident)::+) => {
        impl $crate::protocol::Cache for $crate::$($module)::+::MappingCache {
            fn make() -> ::std::pin::Pin<::std::sync::Arc<Self>> {
                let pages = ::std::sync::Arc::new($crate::cache_pages::PageCount);
                ::pinned_init::InPlaceInit::pin_init(Self::new(0, pages)).unwrap()
            }

            fn get(&self) -> Option<Option<usize>> {
                let found = self.get(0)?;
                Some(found.map(|mapping| mapping.block as usize))
            }

            fn put(&self, block: Option<usize>) {
                let mut window = $crate::$($module)::+::Window::around(0);
                match block {
                    Some(block) => {
                        let value = ::thin_metadata::format::BlockTime::new(block as u64, 0);
                        window.add(0, value.unwrap());
                    }
                    None => window.add_unmapped(0),
                }
                while self.put(window.entries()).is_err() {
                    if self.add_page(0).is_err() {
                        break;
                    }
                }
            }

            fn forget(&self) {
                self.forget(&(0..1));
            }

            fn evict(&self) {
                self.remove_page(0);
            }

            fn is_committed(&self) -> bool {
                self.is_committed()
            }

            fn set_uncommitted(&self) {
                self.set_uncommitted()
            }

            fn set_committed(&self) {
                self.set_committed()
            }
        }
    };
}
pub(crate) use impl_cache;

impl_in_flight!(in_flight);
impl_hold_set!(hold_set);
impl_cache!(mapping_cache);

/// What the module is made of.
pub(crate) struct Module;

impl Parts for Module {
    type Set = (crate::in_flight::InFlight, Worker);
    type Cache = crate::mapping_cache::MappingCache;
}

/// The same, with the set that a thread waits for.
pub(crate) struct Sleeper;

impl Parts for Sleeper {
    type Set = crate::hold_set::HoldSet;
    type Cache = crate::mapping_cache::MappingCache;
}

/// What is done wrong, to see that it is found out.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Slip {
    /// A bio looks into the cache before it enters.
    LookThenEnter,
    /// A bio tells the cache when it has given the lock back.
    FillUnlocked,
    /// A bio leaves before it uses the block.
    LeaveThenUse,
    /// A bio asks whether all is committed before it looks into the cache.
    AskThenLook,
    /// A change leaves the cache as it is.
    NoInvalidation,
    /// A change tells the cache after waiting.
    WaitThenInvalidate,
    /// A change does not wait.
    NoWait,
    /// A change does not note that it is not committed.
    NotNoted,
    /// A change notes that when the cache is told.
    TellThenNote,
}

/// What is in a data block.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Content {
    Unused,
    OfVolume,
    OfAnother,
}

/// A data block. loom ends a test in which two use it, one of them changes it, and nothing orders the one after the
/// other. It is unknown to loom that there is a lock in between.
struct Block(std::sync::Mutex<Cell<Content>>);

impl Block {
    fn new(content: Content) -> Self {
        Self(std::sync::Mutex::new(Cell::new(content)))
    }

    fn read(&self) -> Content {
        self.0.lock().unwrap().get()
    }

    fn write(&self, content: Content) {
        self.0.lock().unwrap().set(content);
    }
}

const BLOCKS: usize = 3;

/// A volume of one block.
pub(crate) struct Volume<P: Parts> {
    set: Pin<Arc<P::Set>>,
    cache: Pin<Arc<P::Cache>>,
    /// The data block, under the lock of the metadata.
    mapping: RwLock<Option<usize>>,
    data: [Block; BLOCKS],
    /// Whether it is committed that the volume is mapped to the block.
    committed: [Atomic<bool>; BLOCKS],
    slip: Option<Slip>,
}

impl<P: Parts> Volume<P> {
    /// Mapped to block 0, which is in the cache or is not.
    pub(crate) fn new(cached: bool, slip: Option<Slip>) -> Arc<Self> {
        let cache = P::Cache::make();
        if cached {
            cache.put(Some(0));
        }
        Arc::new(Self {
            set: P::Set::make(),
            cache,
            mapping: RwLock::new(Some(0)),
            data: [Content::OfVolume, Content::Unused, Content::Unused].map(Block::new),
            committed: [true, false, false].map(Atomic::new),
            slip,
        })
    }

    fn slips(&self, slip: Slip) -> bool {
        self.slip == Some(slip)
    }

    /// A bio begins: gives its place in the set and the block, if there is one.
    pub(crate) fn begin(&self) -> (<P::Set as Set>::Epoch, Option<usize>) {
        let (epoch, cached) = if self.slips(Slip::LookThenEnter) {
            let cached = self.cache.get();
            (self.set.enter(), cached)
        } else {
            let epoch = self.set.enter();
            (epoch, self.cache.get())
        };
        if let Some(found) = cached {
            return (epoch, found);
        }

        let mapping = self.mapping.read().unwrap();
        let found = *mapping;
        if self.slips(Slip::FillUnlocked) {
            drop(mapping);
            self.cache.put(found);
        } else {
            self.cache.put(found);
            drop(mapping);
        }
        (epoch, found)
    }

    /// The bio's use of the block.
    pub(crate) fn transfer(&self, block: Option<usize>) {
        if let Some(block) = block {
            assert_eq!(self.data[block].read(), Content::OfVolume);
        }
    }

    /// The bio ends.
    pub(crate) fn end(&self, epoch: <P::Set as Set>::Epoch) {
        self.set.leave(epoch);
    }

    /// A whole bio, which ends on CPU `end`.
    pub(crate) fn bio(&self, end: usize) {
        let (epoch, block) = self.begin();
        if self.slips(Slip::LeaveThenUse) {
            self.end(epoch);
            self.transfer(block);
        } else {
            self.transfer(block);
            run_on(end);
            self.end(epoch);
        }
    }

    /// A bio with FUA.
    pub(crate) fn bio_with_fua(&self) {
        let asked = self
            .slips(Slip::AskThenLook)
            .then(|| self.cache.is_committed());
        let (epoch, block) = self.begin();
        if asked.unwrap_or_else(|| self.cache.is_committed()) {
            if let Some(block) = block {
                let committed = self.committed[block].load(Relaxed);
                assert!(committed, "a bio with FUA met an uncommitted mapping");
            }
            self.transfer(block);
        }
        self.end(epoch);
    }

    /// The mapping moves to another block, or to none.
    pub(crate) fn change(&self, new: Option<usize>) {
        let old = self.remap(new);
        self.reuse(old, new);
    }

    /// The same, with a commit in between.
    pub(crate) fn change_and_commit(&self, new: Option<usize>) {
        let old = self.remap(new);
        if let Some(new) = new {
            self.committed[new].store(true, Relaxed);
        }
        {
            let _mapping = self.mapping.write().unwrap();
            self.cache.set_committed();
        }
        self.reuse(old, new);
    }

    fn invalidate(&self, new: Option<usize>) {
        match new {
            Some(_) => self.cache.put(new),
            None => self.cache.forget(),
        }
    }

    /// Gives the old block.
    fn remap(&self, new: Option<usize>) -> Option<usize> {
        if let Some(new) = new {
            self.data[new].write(Content::OfVolume);
        }
        let mut mapping = self.mapping.write().unwrap();
        let old = std::mem::replace(&mut *mapping, new);
        if !self.slips(Slip::NotNoted) && !self.slips(Slip::TellThenNote) {
            self.cache.set_uncommitted();
        }
        if !self.slips(Slip::NoInvalidation) && !self.slips(Slip::WaitThenInvalidate) {
            self.invalidate(new);
        }
        if self.slips(Slip::TellThenNote) {
            self.cache.set_uncommitted();
        }
        old
    }

    /// The old block goes to another volume.
    fn reuse(&self, old: Option<usize>, new: Option<usize>) {
        if !self.slips(Slip::NoWait) {
            self.set.quiesce();
        }
        if self.slips(Slip::WaitThenInvalidate) {
            self.invalidate(new);
        }
        if let Some(old) = old {
            self.data[old].write(Content::OfAnother);
        }
    }

    /// The cache needs room.
    pub(crate) fn evict(&self) {
        self.cache.evict();
    }
}
