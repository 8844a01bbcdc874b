// SPDX-License-Identifier: GPL-2.0

//! A second opinion on reference counts, for debugging.
//!
//! With the configuration symbol `DM_THIN_SPACE_MAP_CHECKER`, and in this crate's tests, all counts are kept in
//! memory as well. They are changed in the most simple way there is, and compared with what the bitmaps and the
//! tree say after each change, and altogether on commit. A difference gives
//! [`Corruption::SpaceMapIndex`](crate::error::Corruption::SpaceMapIndex). It takes four bytes for each block, in
//! pages of 1024 blocks of which at least one was in use.

#[cfg(any(test, CONFIG_DM_THIN_SPACE_MAP_CHECKER))]
mod imp {
    use crate::{
        block::{
            BlockNr,
            BlockRange, //
        },
        block_manager::Reader,
        btree::Tree,
        error::{
            Corruption,
            Error,
            Result, //
        },
        platform::{
            TryVec,
            Vec, //
        },
        space_map::{
            bitmap::{
                Bitmap,
                MANY,
                NR_ENTRIES,
                VALIDATOR, //
            },
            counts::Counts,
            first_of_bitmap,
            index::Index,
            nr_bitmaps,
            pending::Change,
            place, //
        },
    };
    use core::ops::Range;
    use zerocopy::byteorder::little_endian::U32;

    const PAGE: usize = 1024;

    /// The counts of a page's blocks; no elements when all are zero.
    type Page = Vec<u32>;

    /// All counts of a space map; `None` when they could not be read.
    pub(crate) struct Checker {
        pages: Option<Vec<Page>>,
        /// By how much the root's number of blocks in use was too large when it was read. Images that
        /// `thin_restore` makes count one block more than there are.
        surplus: u64,
    }

    impl Default for Checker {
        fn default() -> Self {
            Self::new()
        }
    }

    impl Checker {
        /// Whether there is anything to all this.
        pub(crate) const CHECKS: bool = true;

        pub(crate) fn new() -> Self {
            Self {
                pages: Some(Vec::new()),
                surplus: 0,
            }
        }

        /// Reads all counts. Gives up without an error if they are corrupt: those who need them will see.
        pub(crate) fn load<'b, I: Index, R: Reader<'b>>(
            &mut self,
            counts: &Counts<I>,
            reader: R,
        ) -> Result {
            match self.try_load(counts, reader) {
                Err(Error::NoMemory) => Err(Error::NoMemory),
                Err(_) => {
                    self.pages = None;
                    Ok(())
                }
                Ok(()) => Ok(()),
            }
        }

        fn try_load<'b, I: Index, R: Reader<'b>>(
            &mut self,
            counts: &Counts<I>,
            reader: R,
        ) -> Result {
            // A size that the bitmaps do not bear out must not make us ask for memory.
            if let Some(last) = nr_bitmaps(counts.nr_blocks()).checked_sub(1) {
                counts.index.load(reader, last)?;
            }
            self.extend(counts.nr_blocks())?;
            for i in 0..nr_bitmaps(counts.nr_blocks()) {
                let index = counts.index.load(reader, i)?;
                let guard = reader.read(index.bitmap, &VALIDATOR)?;
                let base = i * u64::from(NR_ENTRIES);
                for entry in 0..NR_ENTRIES {
                    let block = base + u64::from(entry);
                    if block < counts.nr_blocks() && Bitmap::of(&guard).get(entry) != 0 {
                        self.set(block, counts.get(reader, block)?)?;
                    }
                }
            }
            self.surplus = counts.nr_allocated().wrapping_sub(self.nr_in_use());
            Ok(())
        }

        /// The number of blocks whose count is not zero.
        fn nr_in_use(&self) -> u64 {
            let counts = self.pages.iter().flatten().flat_map(|page| page.iter());
            counts.filter(|&&count| count != 0).count() as u64
        }

        pub(crate) fn extend(&mut self, nr_blocks: BlockNr) -> Result {
            if let Some(pages) = &mut self.pages {
                let n = nr_blocks.div_ceil(PAGE as u64);
                while (pages.len() as u64) < n {
                    pages.try_push(Vec::new())?;
                }
            }
            Ok(())
        }

        /// The page of a block, and where in it the block is. A page that there is not has no elements.
        fn page(&self, block: BlockNr) -> (&[u32], usize) {
            let i = usize::try_from(block / PAGE as u64).ok();
            let page = self
                .pages
                .as_ref()
                .and_then(|pages| pages.get(i?))
                .map_or(&[][..], |page| page);
            (page, (block % PAGE as u64) as usize)
        }

        fn get(&self, block: BlockNr) -> u32 {
            let (page, i) = self.page(block);
            page.get(i).copied().unwrap_or(0)
        }

        pub(crate) fn set(&mut self, block: BlockNr, count: u32) -> Result {
            let Some(pages) = &mut self.pages else {
                return Ok(());
            };
            let page = usize::try_from(block / PAGE as u64)
                .ok()
                .and_then(|i| pages.get_mut(i))
                .ok_or(Error::OutOfBounds(block))?;
            if page.is_empty() {
                *page = Vec::try_filled(0, PAGE)?;
            }
            if let Some(c) = page.get_mut((block % PAGE as u64) as usize) {
                *c = count;
            }
            Ok(())
        }

        pub(crate) fn change(&mut self, change: Change, blocks: BlockRange) -> Result {
            if self.pages.is_none() {
                return Ok(());
            }
            for block in blocks {
                let old = self.get(block);
                let new = match change {
                    Change::Inc => old.checked_add(1),
                    Change::Dec => old.checked_sub(1),
                };
                self.set(block, new.ok_or(Error::RefCount(block))?)?;
            }
            Ok(())
        }

        pub(crate) fn check<'b, I: Index, R: Reader<'b>>(
            &self,
            counts: &Counts<I>,
            reader: R,
            blocks: BlockRange,
        ) -> Result {
            if self.pages.is_none() {
                return Ok(());
            }
            let mut nr_many = 0;
            let mut next = blocks.start;
            while next < blocks.end {
                let (i, first) = place(next);
                let n = (blocks.end - next).min(u64::from(NR_ENTRIES - first));
                let index = counts.index.load(reader, i)?;
                let guard = reader.read(index.bitmap, &VALIDATOR)?;
                nr_many += self.check_bitmap(i, Bitmap::of(&guard), first..first + n as u32)?;
                next += n;
            }
            if nr_many != 0 {
                self.check_tree(counts, reader, blocks, nr_many)?;
            }
            Ok(())
        }

        /// Compares entries of bitmap `i`. Returns how many of them are [`MANY`].
        fn check_bitmap(&self, i: u64, bitmap: &Bitmap, entries: Range<u32>) -> Result<u64> {
            let base = first_of_bitmap(i);
            let mut nr_many = 0;
            let mut next = entries.start;
            while next < entries.end {
                let block = base + u64::from(next);
                let (page, in_page) = self.page(block);
                let end = entries.end.min(next + (PAGE - in_page) as u32);
                let differs =
                    |entry: u32| Error::Corrupt(base + u64::from(entry), Corruption::SpaceMapIndex);
                if page.is_empty()
                    && bitmap.find_free_run(next..end, None, u32::MAX) != Some(next..end)
                {
                    return Err(differs(next));
                }
                for (entry, &count) in (next..end).zip(page.iter().skip(in_page)) {
                    if bitmap.get(entry) != count.min(MANY) {
                        return Err(differs(entry));
                    }
                    nr_many += u64::from(count >= MANY);
                }
                next = end;
            }
            Ok(nr_many)
        }

        /// Compares the counts that the tree has for `blocks`, of which so many belong there.
        fn check_tree<'b, I: Index, R: Reader<'b>>(
            &self,
            counts: &Counts<I>,
            reader: R,
            blocks: BlockRange,
            nr_many: u64,
        ) -> Result {
            let root = counts.root().ref_count_root.get();
            let mut nr_equal = 0;
            Tree::<U32, 1>::from_root(root).scan(
                reader,
                &[blocks.start],
                blocks.end,
                |block, count| {
                    let expected = self.get(block);
                    nr_equal += u64::from(expected >= MANY && expected == count.get());
                    true
                },
            )?;
            if nr_equal != nr_many {
                return Err(Error::Corrupt(root, Corruption::SpaceMapIndex));
            }
            Ok(())
        }

        pub(crate) fn check_all<'b, I: Index, R: Reader<'b>>(
            &self,
            counts: &Counts<I>,
            reader: R,
        ) -> Result {
            if self.pages.is_none() {
                return Ok(());
            }
            if self.nr_in_use().wrapping_add(self.surplus) != counts.nr_allocated() {
                let root = counts.root().bitmap_root.get();
                return Err(Error::Corrupt(root, Corruption::SpaceMapIndex));
            }
            self.check(counts, reader, 0..counts.nr_blocks())
        }
    }
}

#[cfg(not(any(test, CONFIG_DM_THIN_SPACE_MAP_CHECKER)))]
mod imp {
    use crate::{
        block::{
            BlockNr,
            BlockRange, //
        },
        block_manager::Reader,
        error::Result,
        space_map::{
            counts::Counts,
            index::Index,
            pending::Change, //
        },
    };

    /// Checks nothing.
    #[derive(Default)]
    pub(crate) struct Checker;

    impl Checker {
        /// Whether there is anything to all this.
        pub(crate) const CHECKS: bool = false;

        pub(crate) fn new() -> Self {
            Self
        }

        pub(crate) fn load<'b, I: Index, R: Reader<'b>>(&mut self, _: &Counts<I>, _: R) -> Result {
            Ok(())
        }

        pub(crate) fn extend(&mut self, _: BlockNr) -> Result {
            Ok(())
        }

        pub(crate) fn set(&mut self, _: BlockNr, _: u32) -> Result {
            Ok(())
        }

        pub(crate) fn change(&mut self, _: Change, _: BlockRange) -> Result {
            Ok(())
        }

        pub(crate) fn check<'b, I: Index, R: Reader<'b>>(
            &self,
            _: &Counts<I>,
            _: R,
            _: BlockRange,
        ) -> Result {
            Ok(())
        }

        pub(crate) fn check_all<'b, I: Index, R: Reader<'b>>(&self, _: &Counts<I>, _: R) -> Result {
            Ok(())
        }
    }
}

pub(crate) use imp::Checker;
