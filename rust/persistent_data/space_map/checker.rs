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
                NR_ENTRIES,
                VALIDATOR, //
            },
            counts::Counts,
            index::Index,
            nr_bitmaps,
            pending::Change, //
        },
    };

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

        fn get(&self, block: BlockNr) -> u32 {
            let Some(pages) = &self.pages else {
                return 0;
            };
            usize::try_from(block / PAGE as u64)
                .ok()
                .and_then(|i| pages.get(i))
                .and_then(|page| page.get((block % PAGE as u64) as usize))
                .copied()
                .unwrap_or(0)
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
            for block in blocks {
                if counts.get(reader, block)? != self.get(block) {
                    return Err(Error::Corrupt(block, Corruption::SpaceMapIndex));
                }
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
