// SPDX-License-Identifier: GPL-2.0

//! Sets of data blocks.

use core::ops::Range;

use kernel::{
    alloc::flags::{
        __GFP_NOWARN, //
        GFP_NOWAIT,
    },
    prelude::*,
    rbtree::{
        Entry,
        RBTree,
        RBTreeNodeReservation, //
    }, //
};
use thin_metadata::DataBlock;

/// How many blocks a page has bits for.
const BLOCKS_PER_PAGE: u64 = 32768;
const WORDS_PER_PAGE: usize = 512;

/// A set of data blocks: a tree of bitmaps, of which there is one wherever blocks are in the set, and none elsewhere.
///
/// So what anything costs has nothing to do with how large the data device is.
pub(crate) struct BlockSet {
    /// By the number of their first block, divided by [`BLOCKS_PER_PAGE`]. None is empty.
    pages: RBTree<u64, Page>,
    len: u64,
}

/// Some blocks that are next to each other, and which of them are in the set.
struct Page {
    /// How many are.
    len: u64,
    words: KBox<[u64; WORDS_PER_PAGE]>,
}

impl Page {
    fn new() -> Result<Self> {
        Ok(Self {
            len: 0,
            words: KBox::zeroed(GFP_NOWAIT | __GFP_NOWARN)?,
        })
    }

    fn contains(&self, place: usize) -> bool {
        let word = self.words.get(place / 64);
        word.is_some_and(|word| word & (1 << (place % 64)) != 0)
    }

    /// Calls `f` with each word that has bits of `places`, and those bits.
    fn for_words(&mut self, places: Range<usize>, mut f: impl FnMut(&mut u64, u64)) {
        let mut next = places.start;
        while next < places.end {
            let end = (next | 63).saturating_add(1).min(places.end);
            // At most 64.
            let n = end.saturating_sub(next) as u32;
            let mask = (u64::MAX >> 64u32.saturating_sub(n).min(63)) << (next % 64);
            if let Some(word) = self.words.get_mut(next / 64) {
                f(word, mask);
            }
            next = end;
        }
    }

    /// Adds blocks; gives how many of them are new.
    fn insert(&mut self, places: Range<usize>) -> u64 {
        let mut nr = 0u64;
        self.for_words(places, |word, mask| {
            nr = nr.saturating_add(u64::from((mask & !*word).count_ones()));
            *word |= mask;
        });
        self.len = self.len.saturating_add(nr);
        nr
    }

    /// Takes blocks out; gives how many there were.
    fn remove(&mut self, places: Range<usize>) -> u64 {
        let mut nr = 0u64;
        self.for_words(places, |word, mask| {
            nr = nr.saturating_add(u64::from((mask & *word).count_ones()));
            *word &= !mask;
        });
        self.len = self.len.saturating_sub(nr);
        nr
    }

    /// Adds what is in `other`; gives how many blocks are new.
    fn append(&mut self, other: &Self) -> u64 {
        let mut nr = 0u64;
        for (to, from) in self.words.iter_mut().zip(other.words.iter()) {
            nr = nr.saturating_add(u64::from((from & !*to).count_ones()));
            *to |= from;
        }
        self.len = self.len.saturating_add(nr);
        nr
    }

    /// The first block from `from` on that is in the set, or that is not.
    fn next(&self, from: usize, is_member: bool) -> Option<usize> {
        let mut unwanted = (1u64 << (from % 64)).wrapping_sub(1);
        for (i, word) in self.words.iter().enumerate().skip(from / 64) {
            let bits = if is_member { *word } else { !word };
            let bits = bits & !unwanted;
            if bits != 0 {
                return Some((i * 64) | bits.trailing_zeros() as usize);
            }
            unwanted = 0;
        }
        None
    }
}

/// The page of a block, and its place there.
fn place(block: DataBlock) -> (u64, usize) {
    (block / BLOCKS_PER_PAGE, (block % BLOCKS_PER_PAGE) as usize)
}

/// The blocks of a page, of which there may be none beyond the last number.
fn blocks_of(page: u64) -> Range<DataBlock> {
    let start = page.saturating_mul(BLOCKS_PER_PAGE);
    start..start.saturating_add(BLOCKS_PER_PAGE)
}

/// The places in `page` of those of `blocks` that are there.
fn places_in(page: u64, blocks: &Range<DataBlock>) -> Range<usize> {
    let all = blocks_of(page);
    let start = blocks.start.max(all.start).saturating_sub(all.start);
    let end = blocks.end.min(all.end).saturating_sub(all.start);
    // At most [`BLOCKS_PER_PAGE`].
    start as usize..end as usize
}

impl BlockSet {
    /// The empty set.
    pub(crate) fn new() -> Self {
        Self {
            pages: RBTree::new(),
            len: 0,
        }
    }

    /// How many blocks are in the set.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes it the empty set.
    pub(crate) fn clear(&mut self) {
        *self = Self::new();
    }

    /// Whether `block` is in the set.
    #[inline]
    pub(crate) fn contains(&self, block: DataBlock) -> bool {
        // Mostly it is empty.
        if self.is_empty() {
            return false;
        }
        let (page, place) = place(block);
        self.pages
            .get(&page)
            .is_some_and(|page| page.contains(place))
    }

    /// Adds blocks. Does not wait for memory, as the worker must not. Fails with [`ENOMEM`]; some of them are in the set
    /// then.
    pub(crate) fn insert(&mut self, blocks: &Range<DataBlock>) -> Result {
        let mut next = blocks.start;
        while next < blocks.end {
            let (nr, _) = place(next);
            let page = match self.pages.entry(nr) {
                Entry::Occupied(page) => page.into_mut(),
                Entry::Vacant(room) => {
                    let page = Page::new()?;
                    room.insert(page, RBTreeNodeReservation::new(GFP_NOWAIT | __GFP_NOWARN)?)
                }
            };
            let new = page.insert(places_in(nr, blocks));
            self.len = self.len.saturating_add(new);
            next = blocks_of(nr).end;
        }
        Ok(())
    }

    /// Takes blocks out; those that are not in the set do not matter.
    pub(crate) fn remove(&mut self, blocks: &Range<DataBlock>) {
        let mut next = blocks.start;
        while next < blocks.end {
            let Some(mut cursor) = self.pages.cursor_lower_bound_mut(&place(next).0) else {
                return;
            };
            let (nr, page) = cursor.current_mut();
            let nr = *nr;
            let old = page.remove(places_in(nr, blocks));
            self.len = self.len.saturating_sub(old);
            if page.len == 0 {
                cursor.remove_current();
            }
            next = blocks_of(nr).end;
        }
    }

    /// Adds what is in `other`, which is empty then. Its bitmaps move, so no memory is needed.
    pub(crate) fn append(&mut self, other: &mut Self) -> Result {
        self.len = self.len.saturating_add(core::mem::take(&mut other.len));
        while let Some(first) = other.pages.cursor_front_mut() {
            let (_, node) = first.remove_current();
            let Some(replaced) = self.pages.insert(node) else {
                continue;
            };
            let (nr, old) = replaced.to_key_value();
            if let Some(page) = self.pages.get_mut(&nr) {
                let new = page.append(&old);
                // Those that are in both were counted twice.
                self.len = self.len.saturating_sub(old.len.saturating_sub(new));
            }
        }
        Ok(())
    }

    /// The first run of blocks at or after `from`, or the beginning of it if it has more than `max`, which is not
    /// zero.
    pub(crate) fn next_run(&self, from: DataBlock, max: u64) -> Option<Range<DataBlock>> {
        let (wanted, first) = place(from);
        let (mut nr, mut page) = self.page_from(wanted)?;
        let mut at = if nr == wanted { first } else { 0 };
        // Only in the page of `from` there may be none.
        let start = loop {
            if let Some(found) = page.next(at, true) {
                at = found;
                break blocks_of(nr).start.saturating_add(found as u64);
            }
            (nr, page) = self.page_from(nr.checked_add(1)?)?;
            at = 0;
        };
        let limit = start.saturating_add(max);
        loop {
            let blocks = blocks_of(nr);
            if let Some(found) = page.next(at, false) {
                let end = blocks.start.saturating_add(found as u64);
                return Some(start..end.min(limit));
            }
            let next = nr.saturating_add(1);
            match self.pages.get(&next) {
                Some(following) if blocks.end < limit => {
                    (nr, page) = (next, following);
                    at = 0;
                }
                _ => return Some(start..blocks.end.min(limit)),
            }
        }
    }

    /// The first page from `from` on, with its number.
    fn page_from(&self, from: u64) -> Option<(u64, &Page)> {
        let nr = *self.pages.cursor_lower_bound(&from)?.current().0;
        Some((nr, self.pages.get(&nr)?))
    }

    /// How many bitmaps there are.
    #[cfg(dm_thin_kunit)]
    fn nr_pages(&self) -> usize {
        self.pages.iter().count()
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_thin_block_set)]
mod tests {
    use super::*;

    #[test]
    fn ranges() -> Result {
        let mut set = BlockSet::new();
        assert!(set.is_empty() && !set.contains(0));
        assert_eq!(set.next_run(0, 10), None);

        set.insert(&(60..130))?;
        set.insert(&(64..64))?;
        set.insert(&(100..200))?;
        assert_eq!(set.len(), 140);
        assert!(!set.contains(59) && set.contains(60) && set.contains(199) && !set.contains(200));
        assert_eq!(set.next_run(0, 1000), Some(60..200));
        assert_eq!(set.next_run(0, 3), Some(60..63));
        assert_eq!(set.next_run(70, 1000), Some(70..200));
        assert_eq!(set.next_run(200, 1000), None);

        set.remove(&(128..192));
        assert_eq!(set.len(), 76);
        assert_eq!(set.next_run(100, 1000), Some(100..128));
        assert_eq!(set.next_run(128, 1000), Some(192..200));
        set.remove(&(0..1_000_000));
        assert!(set.is_empty());
        Ok(())
    }

    #[test]
    fn pages() -> Result {
        let mut set = BlockSet::new();
        let far = 5 * BLOCKS_PER_PAGE;
        set.insert(&(far - 3..far + 3))?;
        assert_eq!(set.next_run(1, 100), Some(far - 3..far + 3));
        assert!(!set.contains(u64::MAX));
        assert_eq!(set.next_run(u64::MAX - 1, 1), None);

        let mut other = BlockSet::new();
        other.insert(&(far + 3..far + 5))?;
        other.insert(&(0..1))?;
        set.append(&mut other)?;
        assert!(other.is_empty());
        assert_eq!(set.len(), 9);
        assert_eq!(set.next_run(0, 100), Some(0..1));
        assert_eq!(set.next_run(1, 100), Some(far - 3..far + 5));

        set.append(&mut BlockSet::new())?;
        other.append(&mut set)?;
        assert!(set.is_empty());
        assert_eq!(other.len(), 9);

        // What is in both is there once.
        set.insert(&(far..far + 9))?;
        other.append(&mut set)?;
        assert!(set.is_empty());
        assert_eq!(other.len(), 13);
        assert_eq!(other.next_run(1, 100), Some(far - 3..far + 9));
        assert_eq!(other.next_run(far, 4), Some(far..far + 4));
        assert_eq!(other.next_run(far - 3, 3), Some(far - 3..far));
        Ok(())
    }

    #[test]
    fn far_blocks_cost_what_near_ones_do() -> Result {
        // The last block that a mapping can have a number for, and any number at all.
        for block in [0, (1 << 40) - 1, u64::MAX - 1] {
            let mut set = BlockSet::new();
            for _ in 0..3 {
                set.insert(&(block..block + 1))?;
                assert_eq!((set.len(), set.nr_pages()), (1, 1));
                assert!(set.contains(block) && !set.contains(block ^ 1));
                assert_eq!(set.next_run(0, 9), Some(block..block + 1));
                set.remove(&(block..block + 1));
                assert_eq!((set.len(), set.nr_pages()), (0, 0));
            }
        }

        // A page for each place where there are blocks; what goes away gives its page back.
        let mut set = BlockSet::new();
        for i in 0..100 {
            set.insert(&(i << 33..(i << 33) + 5))?;
        }
        assert_eq!((set.len(), set.nr_pages()), (500, 100));
        set.remove(&(3 << 33..u64::MAX));
        assert_eq!((set.len(), set.nr_pages()), (15, 3));
        set.remove(&(0..3));
        assert_eq!((set.len(), set.nr_pages()), (12, 3));
        let mut other = BlockSet::new();
        other.insert(&((9 << 33)..(9 << 33) + 1))?;
        set.append(&mut other)?;
        assert_eq!((other.len(), other.nr_pages()), (0, 0));
        assert_eq!((set.len(), set.nr_pages()), (13, 4));
        set.clear();
        assert_eq!((set.len(), set.nr_pages()), (0, 0));
        Ok(())
    }

    #[test]
    fn any_changes_give_what_single_bits_say() -> Result {
        // Over the border of two pages, with a page in between that is never made, against an array.
        const N: u64 = 300;
        let base = BLOCKS_PER_PAGE - N / 2;
        let mut model = [false; N as usize];
        let mut set = BlockSet::new();
        let mut random = 1u64;
        for _ in 0..2000 {
            random = random
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            let start = (random >> 33) % N;
            let end = (start + (random >> 50) % 70).min(N);
            let is_insertion = random >> 63 != 0;
            let blocks = base + start..base + end;
            match is_insertion {
                true => set.insert(&blocks)?,
                false => set.remove(&blocks),
            }
            for i in start..end {
                if let Some(bit) = model.get_mut(i as usize) {
                    *bit = is_insertion;
                }
            }
            assert_eq!(set.len(), model.iter().filter(|bit| **bit).count() as u64);

            let from = (random >> 20) % N;
            assert_eq!(
                set.contains(base + from),
                model.get(from as usize) == Some(&true)
            );
            let is = |i: &u64, wanted| model.get(*i as usize) == Some(&wanted);
            let run = (from..N).find(|i| is(i, true)).map(|first| {
                let end = (first..N).find(|i| is(i, false)).unwrap_or(N);
                base + first..base + end.min(first + 40)
            });
            assert_eq!(set.next_run(base + from, 40), run);
        }
        Ok(())
    }
}
