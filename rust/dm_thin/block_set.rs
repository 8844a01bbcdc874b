// SPDX-License-Identifier: GPL-2.0

//! Sets of data blocks.

use core::ops::Range;

use kernel::prelude::*;
use thin_metadata::DataBlock;

/// How many blocks a page has bits for.
const BLOCKS_PER_PAGE: u64 = 32768;
const WORDS_PER_PAGE: usize = 512;

type Page = KBox<[u64; WORDS_PER_PAGE]>;

/// A set of data blocks: a bitmap whose pages are made when they are needed, and given back when the set gets
/// empty.
pub(crate) struct BlockSet {
    pages: KVVec<Option<Page>>,
    len: u64,
}

/// A part of a word, with a bit for each block in it.
struct Part {
    page: usize,
    word: usize,
    mask: u64,
}

/// Calls `f` with each word that has blocks of `blocks`.
fn for_words(blocks: &Range<DataBlock>, mut f: impl FnMut(Part) -> Result) -> Result {
    let mut next = blocks.start;
    while next < blocks.end {
        let end = (next | 63).saturating_add(1).min(blocks.end);
        // At most 64.
        let n = end.saturating_sub(next) as u32;
        f(Part {
            page: page_of(next)?,
            word: word_of(next),
            mask: (u64::MAX >> 64u32.saturating_sub(n).min(63)) << (next % 64),
        })?;
        next = end;
    }
    Ok(())
}

fn page_of(block: DataBlock) -> Result<usize> {
    usize::try_from(block / BLOCKS_PER_PAGE).map_err(|_| EINVAL)
}

fn word_of(block: DataBlock) -> usize {
    (block % BLOCKS_PER_PAGE / 64) as usize
}

impl BlockSet {
    /// The empty set.
    pub(crate) const fn new() -> Self {
        Self {
            pages: KVVec::new(),
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

    fn page(&self, page: usize) -> Option<&Page> {
        self.pages.get(page)?.as_ref()
    }

    fn page_mut(&mut self, page: usize) -> Result<&mut Page> {
        while self.pages.len() <= page {
            self.pages.push(None, GFP_KERNEL)?;
        }
        let slot = self.pages.get_mut(page).ok_or(EINVAL)?;
        Ok(match slot {
            Some(page) => page,
            None => slot.insert(KBox::new([0; WORDS_PER_PAGE], GFP_KERNEL)?),
        })
    }

    /// Whether `block` is in the set.
    pub(crate) fn contains(&self, block: DataBlock) -> bool {
        let page = page_of(block).ok().and_then(|page| self.page(page));
        let word = page.and_then(|page| page.get(word_of(block)));
        word.is_some_and(|word| word & (1 << (block % 64)) != 0)
    }

    /// Adds blocks. Fails with [`ENOMEM`]; some of them are in the set then.
    pub(crate) fn insert(&mut self, blocks: &Range<DataBlock>) -> Result {
        for_words(blocks, |part| {
            let page = self.page_mut(part.page)?;
            let word = page.get_mut(part.word).ok_or(EINVAL)?;
            let new = part.mask & !*word;
            *word |= new;
            self.len = self.len.saturating_add(u64::from(new.count_ones()));
            Ok(())
        })
    }

    /// Takes blocks out; those that are not in the set do not matter.
    pub(crate) fn remove(&mut self, blocks: &Range<DataBlock>) {
        let _ = for_words(blocks, |part| {
            let page = self.pages.get_mut(part.page).and_then(Option::as_mut);
            if let Some(word) = page.and_then(|page| page.get_mut(part.word)) {
                let old = part.mask & *word;
                *word &= !old;
                self.len = self.len.saturating_sub(u64::from(old.count_ones()));
            }
            Ok(())
        });
        if self.is_empty() {
            self.clear();
        }
    }

    /// Adds what is in `other`, which is empty then. Fails with [`ENOMEM`]; what could not be added stays in
    /// `other`.
    pub(crate) fn append(&mut self, other: &mut Self) -> Result {
        if self.is_empty() {
            core::mem::swap(self, other);
            return Ok(());
        }
        let mut from = 0;
        while let Some(run) = other.next_run(from, u64::MAX) {
            self.insert(&run)?;
            other.remove(&run);
            from = run.end;
        }
        Ok(())
    }

    /// The first run of blocks at or after `from`, or the beginning of it if it has more than `max`, which is not
    /// zero.
    pub(crate) fn next_run(&self, from: DataBlock, max: u64) -> Option<Range<DataBlock>> {
        let start = self.next(from, true)?;
        let end = self.next(start, false).unwrap_or(u64::MAX);
        Some(start..end.min(start.saturating_add(max)))
    }

    /// The first block at or after `from` that is in the set, or that is not.
    fn next(&self, from: DataBlock, is_member: bool) -> Option<DataBlock> {
        let mut block = from;
        loop {
            let page = page_of(block).ok()?;
            let slot = match self.pages.get(page) {
                Some(slot) => slot,
                None => return (!is_member).then_some(block),
            };
            let Some(words) = slot else {
                if !is_member {
                    return Some(block);
                }
                block = (block | (BLOCKS_PER_PAGE - 1)).checked_add(1)?;
                continue;
            };
            let word = words.get(word_of(block)).copied()?;
            let bits = if is_member { word } else { !word };
            let bits = bits & (u64::MAX << (block % 64));
            let base = block & !63;
            if bits != 0 {
                return Some(base | u64::from(bits.trailing_zeros()));
            }
            block = base.checked_add(64)?;
        }
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
        Ok(())
    }
}
