// SPDX-License-Identifier: GPL-2.0

//! The memory of the mapping caches.
//!
//! All pools together have no more pages than the module parameter `mapping_cache_pages` says; a pool that wants one
//! more gives another one of its own back. Pages go in the order of a clock: its hand goes round all pages of a
//! pool, and takes those that were not used since it was there last. It does so, too, when the kernel is short of
//! memory.

use dm::{
    params::UintParam,
    sparse_words::{
        PAGE_BYTES,
        WORDS_PER_PAGE, //
    },
    NoIo,
    Shrink, //
};
use kernel::{
    prelude::*,
    rbtree::RBTree,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        new_mutex,
        Arc,
        Mutex, //
    }, //
};
use thin_metadata::{
    DeviceId,
    VirtualBlock, //
};

use crate::mapping_cache::{
    Entry,
    MappingCache, //
};

/// Stands for the default, which depends on the size of the memory.
const DEFAULT: u32 = u32::MAX;

/// The default's share of the memory: one part of so many.
const MEMORY_PARTS: u64 = 50;

/// How many pages all pools may have together.
static LIMIT: UintParam = UintParam::new(DEFAULT);

dm::uint_param!(
    dm_thin_pool.mapping_cache_pages,
    &LIMIT,
    "The most pages of 4 KiB that all pools keep of mappings in memory (0 = none)"
);

/// How many pages all pools have.
static PAGES: Atomic<i64> = Atomic::new(0);

/// How many pages the hand passes by because they were in use before it takes one nevertheless.
const MAX_USED: usize = 64;

/// How many look-ups without a page are remembered.
const MISSED: usize = 64;

/// Sets the default, if the user has not chosen otherwise.
pub(crate) fn init() {
    if LIMIT.get() == DEFAULT {
        let pages = dm::total_memory() / PAGE_BYTES as u64 / MEMORY_PARTS;
        LIMIT.set(u32::try_from(pages).unwrap_or(DEFAULT));
    }
}

fn limit() -> i64 {
    i64::from(LIMIT.get())
}

/// Counts the pages of a pool.
pub(crate) struct PageCount(Atomic<i64>);

impl PageCount {
    fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }

    /// Counts one more page, if the limit allows for it.
    pub(crate) fn reserve(&self) -> Result {
        if PAGES.fetch_add(1, Relaxed) >= limit() {
            PAGES.fetch_sub(1, Relaxed);
            return Err(ENOMEM);
        }
        self.0.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Counts one page less.
    pub(crate) fn release(&self) {
        PAGES.fetch_sub(1, Relaxed);
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The cache of a device, which all its tables share.
struct Open {
    cache: Arc<MappingCache>,
    users: usize,
}

struct Entries {
    /// By the ids of the devices.
    open: RBTree<u64, Open>,
    /// The clock's hand: a device, or where one may have been, and the next page of its cache.
    hand: (u64, usize),
}

impl Entries {
    /// Gives up to `want` pages back, and looks at `most` for that. After `patience` pages that were in use it does not
    /// mind. How many were given back.
    fn sweep(&mut self, want: usize, most: usize, patience: usize) -> usize {
        let (mut given, mut seen, mut rounds) = (0usize, 0usize, 0);
        while given < want && seen < most && rounds < 3 {
            let (id, next) = self.hand;
            let Some(cursor) = self.open.cursor_lower_bound(&id) else {
                self.hand = (0, 0);
                rounds += 1;
                continue;
            };
            let (&found, Open { cache, .. }) = cursor.current();
            let next = if found == id { next } else { 0 };
            let Some(page) = cache.next_page(next) else {
                self.hand = (found.saturating_add(1), 0);
                continue;
            };
            self.hand = (found, page.saturating_add(1));
            if !(cache.take_used(page) && seen < patience) && cache.remove_page(page) {
                given = given.saturating_add(1);
            }
            seen = seen.saturating_add(1);
        }
        given
    }
}

/// The mapping caches of a pool.
///
/// Whoever holds the lock allocates nothing that I/O could have to wait for. It comes after that of the metadata.
#[pin_data]
pub(crate) struct MappingCaches {
    pages: Arc<PageCount>,
    /// Where blocks were looked up lately that there is no page for; a number for a device and a page of it.
    missed: [Atomic<u64>; MISSED],
    #[pin]
    entries: Mutex<Entries>,
}

/// How much is cached.
pub(crate) struct Usage {
    /// Pages of this pool.
    pub(crate) pages: u64,
    /// The most pages of all pools.
    pub(crate) limit: u64,
    /// Mappings in these pages.
    pub(crate) mappings: u64,
    /// The memory that the pages take.
    pub(crate) bytes: u64,
}

impl MappingCaches {
    pub(crate) fn new() -> Result<Arc<Self>> {
        let pages = Arc::new(PageCount(Atomic::new(0)), GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                pages,
                missed: core::array::from_fn(|_| Atomic::new(0)),
                entries <- new_mutex!(
                    Entries {
                        open: RBTree::new(),
                        hand: (0, 0),
                    },
                    "dm_thin::MappingCaches"
                ),
            }),
            GFP_KERNEL,
        )
    }

    /// The cache of device `id`, made if it has none. To be closed as often as it is opened.
    pub(crate) fn open(&self, id: DeviceId, snapshotted_time: u32) -> Result<Arc<MappingCache>> {
        let _noio = NoIo::enter();
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.open.get_mut(&id.into()) {
            entry.users = entry.users.saturating_add(1);
            return Ok(entry.cache.clone());
        }
        let cache = MappingCache::new(snapshotted_time, self.pages.clone());
        let cache = Arc::pin_init(cache, GFP_KERNEL)?;
        let entry = Open {
            cache: cache.clone(),
            users: 1,
        };
        entries
            .open
            .try_create_and_insert(id.into(), entry, GFP_KERNEL)?;
        Ok(cache)
    }

    /// Gives an opening of [`open`](Self::open) back.
    pub(crate) fn close(&self, id: DeviceId) {
        let closed = {
            let mut entries = self.entries.lock();
            let Some(mut entry) = entries.open.find_mut(&id.into()) else {
                return;
            };
            let users = entry.get().users.saturating_sub(1);
            if users > 0 {
                entry.get_mut().users = users;
                return;
            }
            entry.remove_node().to_key_value().1
        };
        // Others may keep it for a while, but nobody uses it.
        closed.cache.clear();
    }

    /// Calls `f` with the cache of device `id`, if that is open.
    pub(crate) fn with(&self, id: DeviceId, f: impl FnOnce(&Arc<MappingCache>)) {
        let entries = self.entries.lock();
        if let Some(entry) = entries.open.get(&id.into()) {
            f(&entry.cache);
        }
    }

    /// Calls `f` with the id of each device that is open, and its cache.
    pub(crate) fn for_each(&self, mut f: impl FnMut(DeviceId, &MappingCache)) {
        let entries = self.entries.lock();
        for (id, entry) in &entries.open {
            if let Ok(id) = DeviceId::try_from(*id) {
                f(id, &entry.cache);
            }
        }
    }

    /// Caches mappings of a device, as far as that can be done without waiting; for those who hold the metadata.
    ///
    /// Nothing else stays cached of their blocks: where it cannot be told, there is no page.
    pub(crate) fn put(&self, cache: &MappingCache, mut entries: impl Iterator<Item = Entry>) {
        while let Err(entry) = cache.put(&mut entries) {
            if self.add_page(cache, entry.block()).is_ok() {
                // Should the page be gone again, the entry is left out.
                let _ = cache.put(core::iter::once(entry));
            }
        }
    }

    /// As [`put`](Self::put), for the mapping of `block` of device `id` that was looked up, and others around it.
    ///
    /// If there is no page, one is made only if another block of it was looked up not long ago: I/O here and there
    /// takes no memory.
    pub(crate) fn put_found(
        &self,
        cache: &MappingCache,
        id: DeviceId,
        block: VirtualBlock,
        mut entries: impl Iterator<Item = Entry>,
    ) {
        let Err(entry) = cache.put(&mut entries) else {
            return;
        };
        let page = block / WORDS_PER_PAGE as u64;
        let number = page.wrapping_add(u64::from(id) << 40).wrapping_add(1);
        let is_known = match self.missed.get((number % MISSED as u64) as usize) {
            Some(missed) => missed.xchg(number, Relaxed) == number,
            None => true,
        };
        if is_known {
            self.put(cache, Iterator::chain(core::iter::once(entry), entries));
        }
    }

    #[cold]
    fn add_page(&self, cache: &MappingCache, block: VirtualBlock) -> Result {
        if limit() > 0 && PAGES.load(Relaxed) >= limit() {
            if let Some(mut entries) = self.entries.try_lock() {
                entries.sweep(1, usize::MAX, MAX_USED);
            }
        }
        cache.add_page(block)
    }

    /// Gives back what is beyond the limit, should that have been lowered.
    pub(crate) fn trim(&self) {
        let excess = PAGES.load(Relaxed).saturating_sub(limit());
        if excess > 0 && self.pages.get() > 0 {
            let excess = usize::try_from(excess).unwrap_or(usize::MAX);
            self.entries.lock().sweep(excess, usize::MAX, 0);
        }
    }

    /// How much is cached.
    pub(crate) fn usage(&self) -> Usage {
        let mut mappings = 0u64;
        self.for_each(|_, cache| mappings = mappings.saturating_add(cache.mappings()));
        let pages = u64::try_from(self.pages.get()).unwrap_or(0);
        Usage {
            pages,
            limit: LIMIT.get().into(),
            mappings,
            bytes: pages.saturating_mul(PAGE_BYTES as u64),
        }
    }
}

impl Shrink for MappingCaches {
    fn count(&self) -> usize {
        usize::try_from(self.pages.get()).unwrap_or(0)
    }

    fn scan(&self, n: usize) -> Option<usize> {
        Some(self.entries.try_lock()?.sweep(n, n, n))
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_thin_cache_pages)]
mod tests {
    use super::*;
    use thin_metadata::format::BlockTime;

    /// Whether new mappings of two blocks, of which only the second has a page, leave no old one behind if there may be
    /// `limit` pages.
    fn leaves_nothing_old(limit: u32) -> Result<bool> {
        let caches = MappingCaches::new()?;
        let id = DeviceId::try_from(1).map_err(|_| EINVAL)?;
        let cache = caches.open(id, 0)?;
        let blocks = [0, WORDS_PER_PAGE as u64];
        let old = BlockTime::new(1, 0).ok_or(EINVAL)?;
        let new = BlockTime::new(2, 0).ok_or(EINVAL)?;
        caches.put(&cache, core::iter::once(Entry::mapped(blocks[1], old)));
        assert_eq!(cache.mappings(), 1);

        let limit_before = LIMIT.get();
        LIMIT.set(limit);
        caches.put(&cache, blocks.iter().map(|b| Entry::mapped(*b, new)));
        LIMIT.set(limit_before);

        let is_new = |block: &VirtualBlock| match cache.get(*block) {
            Some(found) => found.is_some_and(|mapping| mapping.block == 2),
            None => true,
        };
        let result = blocks.iter().all(is_new) && cache.mappings() == u64::from(limit.max(1));
        caches.close(id);
        Ok(result)
    }

    #[test]
    fn what_has_no_page_does_not_stop_the_others() -> Result {
        assert!(leaves_nothing_old(0)?);
        assert!(leaves_nothing_old(1)?);
        assert!(leaves_nothing_old(2)?);
        Ok(())
    }
}
