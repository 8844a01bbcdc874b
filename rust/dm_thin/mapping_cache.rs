// SPDX-License-Identifier: GPL-2.0

//! What is known of a thin device's mappings without a look at the metadata.
//!
//! A word for each virtual block, in pages that are made when they are needed, and looked up without locks. What is
//! cached is always what the metadata say: who looks a mapping up caches it while holding the metadata for
//! reading, and who changes one changes the cache as well while holding them for writing. Anything may be forgotten
//! at any time.
//!
//! A bio that found its mapping here holds no lock while it is on its way. That it never gets to a block that
//! belongs to somebody else by then is for [`in_flight`](crate::in_flight) to see to: the bio enters that set before it
//! looks here.
//!
//! Whether a block is shared is told by the time of its mapping, as in the metadata: a snapshot makes all blocks
//! of its origin shared by setting one number.

use core::ops::Range;

use dm::{
    sparse_words::WORDS_PER_PAGE,
    SparseWords, //
};
use kernel::{
    list::{
        impl_list_arc_safe,
        impl_list_item,
        AtomicTracker,
        ListLinks,
        TryNewListArc, //
    },
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Relaxed,
                Release, //
            },
            Atomic, //
        },
        rcu,
        Arc, //
    }, //
};
use thin_metadata::{
    format::BlockTime,
    Mapping,
    VirtualBlock, //
};

use crate::cache_pages::PageCount;

/// The cached mappings of a thin device, and what else of its metadata is wanted without locks.
#[pin_data(PinnedDrop)]
pub(crate) struct MappingCache {
    /// For each virtual block the complement of its [`BlockTime`], or [`UNKNOWN`], or [`UNMAPPED`].
    #[pin]
    words: SparseWords,
    /// When the device was last part of a snapshot: mappings that are older may be shared.
    snapshotted_time: Atomic<u32>,
    /// What became of the device's changes: [`COMMITTED`], [`UNCOMMITTED`] or [`LOST`].
    changes: Atomic<i32>,
    pages: Arc<PageCount>,
    /// Its place among those with changes; see [`Uncommitted`](crate::uncommitted::Uncommitted).
    #[pin]
    links: ListLinks,
    #[pin]
    tracker: AtomicTracker,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for MappingCache { tracked_by tracker: AtomicTracker; }
}
impl_list_item! {
    impl ListItem<0> for MappingCache { using ListLinks { self.links }; }
}

/// It is not known where the block is.
const UNKNOWN: u64 = 0;
/// The block is not mapped.
const UNMAPPED: u64 = 1;

/// All changes of the device are committed.
const COMMITTED: i32 = 0;
/// The metadata have changes of the device that are not committed.
const UNCOMMITTED: i32 = 1;
/// Such changes were lost in an abort.
const LOST: i32 = 2;

/// How many blocks a [`Window`] has; a part of a page.
const WINDOW: usize = 12;

const _: () = assert!(WORDS_PER_PAGE.is_multiple_of(WINDOW));

/// Mappings to be cached: some of a few neighbouring blocks.
pub(crate) struct Window {
    begin: VirtualBlock,
    words: [u64; WINDOW],
}

impl Window {
    /// The one that `block` is in, with no mapping yet.
    pub(crate) fn around(block: VirtualBlock) -> Self {
        Self {
            begin: block.saturating_sub(block % WINDOW as u64),
            words: [UNKNOWN; WINDOW],
        }
    }

    /// The blocks.
    pub(crate) fn blocks(&self) -> Range<VirtualBlock> {
        self.begin..self.begin.saturating_add(WINDOW as u64)
    }

    /// Adds the mapping of one of its blocks.
    #[inline]
    pub(crate) fn add(&mut self, block: VirtualBlock, value: BlockTime) {
        self.set(block, word(value));
    }

    /// Adds that one of its blocks is not mapped.
    pub(crate) fn add_unmapped(&mut self, block: VirtualBlock) {
        self.set(block, UNMAPPED);
    }

    #[inline]
    fn set(&mut self, block: VirtualBlock, word: u64) {
        let i = block.checked_sub(self.begin);
        if let Some(slot) = i.and_then(|i| self.words.get_mut(i as usize)) {
            *slot = word;
        }
    }

    /// What is to be cached.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let blocks = self.begin..;
        blocks
            .zip(&self.words)
            .filter(|(_, word)| **word != UNKNOWN)
            .map(|(block, word)| Entry { block, word: *word })
    }
}

/// What is to be cached of a block.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    block: VirtualBlock,
    word: u64,
}

impl Entry {
    /// The mapping of a block.
    pub(crate) fn mapped(block: VirtualBlock, value: BlockTime) -> Self {
        Self {
            block,
            word: word(value),
        }
    }

    /// The block.
    pub(crate) fn block(&self) -> VirtualBlock {
        self.block
    }
}

/// The word of a mapping.
#[inline]
fn word(value: BlockTime) -> u64 {
    match !value.to_word() {
        // The largest values of all are not cached, as their words stand for something else.
        ..=UNMAPPED => UNKNOWN,
        word => word,
    }
}

// Blocks are numbers of words in memory.
const _: () = assert!(usize::BITS >= VirtualBlock::BITS);

/// Where the word of a block is: the page, and which of its words.
#[inline]
fn place(block: VirtualBlock) -> (usize, usize) {
    let block = block as usize;
    (block / WORDS_PER_PAGE, block % WORDS_PER_PAGE)
}

impl MappingCache {
    /// For a device that was last part of a snapshot at `snapshotted_time`.
    pub(crate) fn new(snapshotted_time: u32, pages: Arc<PageCount>) -> impl PinInit<Self> {
        pin_init!(Self {
            words <- SparseWords::new(),
            snapshotted_time: Atomic::new(snapshotted_time),
            changes: Atomic::new(COMMITTED),
            pages,
            links <- ListLinks::new(),
            tracker <- AtomicTracker::new(),
        })
    }

    /// Where `block` is, if that is known; `Some(None)` says that it is not mapped.
    ///
    /// Who is going to use the data block must be in the set of bios in flight.
    #[inline]
    pub(crate) fn get(&self, block: VirtualBlock) -> Option<Option<Mapping>> {
        let (page, word) = place(block);
        let rcu = rcu::read_lock();
        let page = self.words.page(page, &rcu)?;
        let word = page.words().get(word)?.load(Acquire);
        page.set_used();
        drop(rcu);
        if word <= UNMAPPED {
            return (word == UNMAPPED).then_some(None);
        }
        let value = BlockTime::from_word(!word);
        Some(Some(Mapping {
            block: value.block(),
            shared: self.snapshotted_time.load(Relaxed) > value.time(),
        }))
    }

    /// Caches mappings; for those who hold the metadata. Stops after one that there is no page for, and gives it.
    pub(crate) fn put(&self, entries: impl Iterator<Item = Entry>) -> Result<(), Entry> {
        let rcu = rcu::read_lock();
        // The page of the entry before, with its first block.
        let mut current: Option<(VirtualBlock, &[Atomic<u64>])> = None;
        for entry in entries {
            let slot = current.and_then(|(begin, words)| {
                let slot = entry.block.checked_sub(begin)?;
                words.get(slot as usize)
            });
            let slot = match slot {
                Some(slot) => Some(slot),
                None => {
                    let (page, slot) = place(entry.block);
                    let words = self.words.page(page, &rcu).ok_or(entry)?;
                    let begin = entry.block.saturating_sub(slot as u64);
                    current = Some((begin, words.words()));
                    words.words().get(slot)
                }
            };
            if let Some(slot) = slot {
                slot.store(entry.word, Release);
            }
        }
        Ok(())
    }

    /// Makes a page for `block`, if the limit and the memory allow for it. If somebody else has just done so, that is
    /// no error.
    pub(crate) fn add_page(&self, block: VirtualBlock) -> Result {
        let (page, _) = place(block);
        self.pages.reserve()?;
        match self.words.add_page(page) {
            Ok(()) => Ok(()),
            Err(e) => {
                self.pages.release();
                match e {
                    EBUSY => Ok(()),
                    e => Err(e),
                }
            }
        }
    }

    /// Forgets the mappings of `blocks`; for those who hold the metadata for writing.
    pub(crate) fn forget(&self, blocks: &Range<VirtualBlock>) {
        let Some(last) = blocks
            .end
            .checked_sub(1)
            .filter(|last| *last >= blocks.start)
        else {
            return;
        };
        let ((first_page, first), (last_page, last)) = (place(blocks.start), place(last));
        let mut next = first_page;
        while let Some(page) = self.words.next_page(next).filter(|page| *page <= last_page) {
            let begin = if page == first_page { first } else { 0 };
            let end = if page == last_page {
                last
            } else {
                WORDS_PER_PAGE - 1
            };
            let rcu = rcu::read_lock();
            let words = self.words.page(page, &rcu);
            for word in words
                .and_then(|p| p.words().get(begin..=end))
                .unwrap_or(&[])
            {
                word.store(UNKNOWN, Relaxed);
            }
            next = page.saturating_add(1);
        }
    }

    /// Forgets all mappings; for those who hold the metadata for writing.
    pub(crate) fn clear(&self) {
        let mut next = 0;
        while let Some(page) = self.words.next_page(next) {
            self.remove_page(page);
            next = page;
        }
    }

    /// The first page from `page` on.
    pub(crate) fn next_page(&self, page: usize) -> Option<usize> {
        self.words.next_page(page)
    }

    /// Whether the page was in use since this was last asked for.
    pub(crate) fn take_used(&self, page: usize) -> bool {
        let rcu = rcu::read_lock();
        self.words.page(page, &rcu).is_some_and(|p| p.take_used())
    }

    /// Gives a page back. Whether there was one.
    pub(crate) fn remove_page(&self, page: usize) -> bool {
        let found = self.words.remove_page(page);
        if found {
            self.pages.release();
        }
        found
    }

    /// How many mappings are cached.
    pub(crate) fn mappings(&self) -> u64 {
        let (mut next, mut n) = (0, 0u64);
        while let Some(page) = self.words.next_page(next) {
            let rcu = rcu::read_lock();
            let words = self.words.page(page, &rcu).map(|page| page.words().iter());
            let mapped = |word: &&Atomic<u64>| word.load(Relaxed) > UNMAPPED;
            let mapped = words.map_or(0, |words| words.filter(mapped).count());
            n = n.saturating_add(mapped as u64);
            next = page.saturating_add(1);
        }
        n
    }

    /// When the device was last part of a snapshot has changed, by a new one or by a rollback; for those who hold the
    /// metadata for writing.
    pub(crate) fn set_snapshotted_time(&self, time: u32) {
        self.snapshotted_time.store(time, Relaxed);
    }

    /// Whether the metadata have no changes of the device that are not committed, nor have lost any.
    ///
    /// A flush asks for what was written before: the bios that did so have ended, and that they changed something
    /// was noted before that. A write with FUA asks after it has found its mapping, and that a mapping is new is
    /// noted with [`Release`] before it is cached.
    #[inline]
    pub(crate) fn is_committed(&self) -> bool {
        self.changes.load(Acquire) == COMMITTED
    }

    /// Notes that the device is being changed; for [`Uncommitted`](crate::uncommitted::Uncommitted).
    pub(crate) fn set_uncommitted(&self) {
        if self.changes.load(Relaxed) == COMMITTED {
            self.changes.store(UNCOMMITTED, Release);
        }
    }

    /// Notes that all changes are committed; for [`Uncommitted`](crate::uncommitted::Uncommitted).
    pub(crate) fn set_committed(&self) {
        if self.changes.load(Relaxed) == UNCOMMITTED {
            self.changes.store(COMMITTED, Release);
        }
    }

    /// Notes that what was not committed is lost, for as long as the device is open; for
    /// [`Uncommitted`](crate::uncommitted::Uncommitted).
    pub(crate) fn lose_uncommitted(&self) {
        if self.changes.load(Relaxed) == UNCOMMITTED {
            self.changes.store(LOST, Release);
        }
    }
}

#[pinned_drop]
impl PinnedDrop for MappingCache {
    fn drop(self: Pin<&mut Self>) {
        self.clear();
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_thin_mapping_cache)]
mod tests {
    use super::*;
    use crate::cache_pages::MappingCaches;

    fn value(block: u64, time: u32) -> Result<BlockTime> {
        BlockTime::new(block, time).ok_or(EINVAL)
    }

    fn put(cache: &MappingCache, block: VirtualBlock, data: u64) -> Result {
        let entries = core::iter::once(Entry::mapped(block, value(data, 3)?));
        if cache.put(entries.clone()).is_err() {
            cache.add_page(block)?;
        }
        cache.put(entries).map_err(|_| EINVAL)
    }

    fn mapping(cache: &MappingCache, block: VirtualBlock) -> Option<Mapping> {
        cache.get(block).flatten()
    }

    fn id(id: u64) -> Result<thin_metadata::DeviceId> {
        thin_metadata::DeviceId::try_from(id).map_err(|_| EINVAL)
    }

    #[test]
    fn gives_what_was_put() -> Result {
        let caches = MappingCaches::new()?;
        let cache = caches.open(id(1)?, 3)?;
        assert!(cache.get(0).is_none());
        put(&cache, 0, 0)?;
        put(&cache, 7, 1 << 39)?;
        assert!(mapping(&cache, 0).map(|m| (m.block, m.shared)) == Some((0, false)));
        assert!(mapping(&cache, 7).map(|m| m.block) == Some(1 << 39));
        assert!(cache.get(1).is_none());
        cache.set_snapshotted_time(4);
        assert!(mapping(&cache, 0).map(|m| m.shared) == Some(true));
        let mut window = Window::around(1);
        window.add_unmapped(1);
        window.add(2, value(5, 1)?);
        window.add(WINDOW as u64, value(6, 1)?);
        cache.put(window.entries()).map_err(|_| EINVAL)?;
        assert!(cache.get(1) == Some(None));
        assert!(mapping(&cache, 0).is_some() && mapping(&cache, 2).is_some());
        assert!(cache.get(WINDOW as u64).is_none());
        assert_eq!(cache.mappings(), 3);

        let last = value((1 << 40) - 1, (1 << 24) - 2)?;
        let entries = core::iter::once(Entry::mapped(2, last));
        cache.put(entries).map_err(|_| EINVAL)?;
        assert!(cache.get(2).is_none());
        assert_eq!(cache.mappings(), 2);
        caches.close(id(1)?);
        Ok(())
    }

    #[test]
    fn forgets_what_it_is_told_to() -> Result {
        let caches = MappingCaches::new()?;
        let cache = caches.open(id(1)?, 0)?;
        let n = WORDS_PER_PAGE as u64;
        let known = [0, 5, n - 1, n, 3 * n, 3 * n + 1];
        for block in known {
            put(&cache, block, block)?;
        }
        cache.forget(&(5..5));
        cache.forget(&(n..n - 1));
        assert_eq!(cache.mappings(), 6);
        cache.forget(&(5..n));
        assert!(cache.get(0).is_some() && cache.get(5).is_none() && cache.get(n - 1).is_none());
        cache.forget(&(n - 1..3 * n + 1));
        assert!(cache.get(n).is_none() && cache.get(3 * n).is_none());
        assert!(cache.get(3 * n + 1).is_some());
        cache.forget(&(0..u64::MAX));
        assert_eq!(cache.mappings(), 0);
        caches.close(id(1)?);
        Ok(())
    }

    #[test]
    fn tables_of_a_device_share_a_cache() -> Result {
        let caches = MappingCaches::new()?;
        let old = caches.open(id(1)?, 0)?;
        let other = caches.open(id(2)?, 0)?;
        let new = caches.open(id(1)?, 0)?;
        put(&old, 9, 1)?;
        assert!(new.get(9).is_some() && other.get(9).is_none());
        caches.close(id(1)?);
        caches.with(id(1)?, |cache| cache.set_snapshotted_time(9));
        assert!(mapping(&new, 9).map(|m| m.shared) == Some(true));
        caches.close(id(1)?);
        let fresh = caches.open(id(1)?, 0)?;
        assert!(fresh.get(9).is_none());
        caches.close(id(1)?);
        caches.close(id(2)?);
        Ok(())
    }

    #[test]
    fn pages_that_are_not_used_go_first() -> Result {
        let caches = MappingCaches::new()?;
        let cache = caches.open(id(1)?, 0)?;
        for page in 0..4 {
            put(&cache, page * WORDS_PER_PAGE as u64, page)?;
        }
        assert_eq!(caches.usage().pages, 4);
        for page in 1..4 {
            assert!(cache.get(page * WORDS_PER_PAGE as u64).is_some());
        }
        assert_eq!(dm::Shrink::scan(&*caches, 4), Some(1));
        assert!(cache.get(2 * WORDS_PER_PAGE as u64).is_some());
        assert_eq!(dm::Shrink::scan(&*caches, 3), Some(2));
        assert!(cache.get(2 * WORDS_PER_PAGE as u64).is_some());
        assert_eq!(caches.usage().pages, 1);
        assert_eq!(dm::Shrink::count(&*caches), 1);
        drop(cache);
        caches.close(id(1)?);
        assert_eq!(caches.usage().pages, 0);
        assert_eq!(dm::Shrink::count(&*caches), 0);
        Ok(())
    }
}
