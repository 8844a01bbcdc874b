// SPDX-License-Identifier: GPL-2.0

//! Lists of bios.

use crate::{
    bindings,
    Bio,
    BlkStatus, //
};
use core::{
    marker::PhantomData,
    mem,
    ptr::NonNull, //
};

/// A list of owned bios, first in first out, that needs no memory of its own.
///
/// Bios that are in it when it is dropped end with an I/O error.
///
/// # Invariants
///
/// `head` and `tail` are the first and the last of the bios that are linked by `bi_next`, both
/// `None` if there are none. The last one's `bi_next` is null. All are ours in the sense of
/// [`Bio`].
pub struct BioList<P> {
    head: Option<NonNull<bindings::bio>>,
    tail: Option<NonNull<bindings::bio>>,
    _bios: PhantomData<Bio<P>>,
}

// SAFETY: It is nothing but bios.
unsafe impl<P> Send for BioList<P> where Bio<P>: Send {}
// SAFETY: `&BioList` allows for nothing but `&Bio`.
unsafe impl<P> Sync for BioList<P> where Bio<P>: Sync {}

impl<P> BioList<P> {
    /// An empty list.
    pub const fn new() -> Self {
        Self {
            head: None,
            tail: None,
            _bios: PhantomData,
        }
    }

    /// Whether it has no bio.
    pub fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// How many it has; this counts them.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// The bios, first to last.
    pub fn iter(&self) -> impl Iterator<Item = &Bio<P>> {
        let mut next = self.head.as_ref();
        core::iter::from_fn(move || {
            let ptr = next?;
            // SAFETY: By the type invariants the pointer is a bio of ours, and its link another or
            // null. `Bio<P>`, `NonNull` and `Option<NonNull>` have the layout of a pointer, and the
            // references borrow from `self` as the bios are part of it.
            unsafe {
                let link: *const Option<NonNull<bindings::bio>> =
                    (&raw const (*ptr.as_ptr()).bi_next).cast();
                next = (*link).as_ref();
                Some(&*core::ptr::from_ref(ptr).cast::<Bio<P>>())
            }
        })
    }

    /// The first bio.
    pub fn peek(&self) -> Option<&Bio<P>> {
        self.iter().next()
    }

    /// Appends a bio.
    pub fn push(&mut self, bio: Bio<P>) {
        let mut ptr = bio.into_raw();
        // SAFETY: The bio is ours.
        unsafe { ptr.as_mut().bi_next = core::ptr::null_mut() };
        self.link(ptr, ptr);
    }

    /// Takes the first bio.
    pub fn pop(&mut self) -> Option<Bio<P>> {
        let mut ptr = self.head?;
        // SAFETY: By the type invariants the bio is ours; its link ends here.
        unsafe {
            self.head = NonNull::new(ptr.as_ref().bi_next);
            ptr.as_mut().bi_next = core::ptr::null_mut();
        }
        if self.head.is_none() {
            self.tail = None;
        }
        // SAFETY: By the type invariants, as the bio left the list.
        Some(unsafe { Bio::from_raw(ptr) })
    }

    /// Appends all of `other`, which is empty then.
    pub fn append(&mut self, other: &mut Self) {
        if let (Some(head), Some(tail)) = (other.head.take(), other.tail.take()) {
            self.link(head, tail);
        }
    }

    /// Takes all.
    pub fn take(&mut self) -> Self {
        mem::take(self)
    }

    /// Ends all.
    pub fn end(mut self, status: BlkStatus) {
        while let Some(bio) = self.pop() {
            bio.end(status);
        }
    }

    /// Appends what is linked from `head` to `tail`, which must be ours.
    fn link(&mut self, head: NonNull<bindings::bio>, tail: NonNull<bindings::bio>) {
        match self.tail {
            // SAFETY: By the type invariants the last bio is ours.
            Some(mut last) => unsafe { last.as_mut().bi_next = head.as_ptr() },
            None => self.head = Some(head),
        }
        self.tail = Some(tail);
    }
}

impl<P> Default for BioList<P> {
    fn default() -> Self {
        Self::new()
    }
}

/// The bios of a list, first to last; see [`BioList`].
pub struct IntoIter<P>(BioList<P>);

impl<P> Iterator for IntoIter<P> {
    type Item = Bio<P>;

    fn next(&mut self) -> Option<Bio<P>> {
        self.0.pop()
    }
}

impl<P> IntoIterator for BioList<P> {
    type Item = Bio<P>;
    type IntoIter = IntoIter<P>;

    fn into_iter(self) -> IntoIter<P> {
        IntoIter(self)
    }
}

impl<P> Drop for BioList<P> {
    fn drop(&mut self) {
        while let Some(bio) = self.pop() {
            drop(bio);
        }
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_bio_list)]
mod tests {
    use super::*;
    use crate::bio::fake::FakeBio;
    use kernel::prelude::*;

    /// Fills a list with bios at sectors from zero on.
    fn filled(fakes: &mut KVec<KBox<FakeBio>>, n: u64) -> Result<BioList<u32>> {
        let mut list = BioList::new();
        for i in 0..n {
            let mut fake = FakeBio::new(i as u32, i, bindings::req_op_REQ_OP_READ)?;
            // SAFETY: The type is right, and the tests drop the fakes last.
            list.push(unsafe { fake.bio() });
            fakes.push(fake, GFP_KERNEL)?;
        }
        Ok(list)
    }

    fn sectors(list: &BioList<u32>) -> Result<KVec<u64>> {
        let mut v = KVec::new();
        for bio in list.iter() {
            v.push(bio.sector(), GFP_KERNEL)?;
        }
        Ok(v)
    }

    #[test]
    fn is_first_in_first_out() -> Result {
        let mut fakes = KVec::new();
        let mut list = filled(&mut fakes, 4)?;
        assert_eq!(list.len(), 4);
        assert!(list.peek().map(|b| *b.data()) == Some(0));
        let first = list.pop().ok_or(EINVAL)?;
        assert_eq!(first.sector(), 0);
        list.push(first);
        assert!(sectors(&list)?[..] == [1, 2, 3, 0]);
        list.end(BlkStatus::OK);
        assert!(fakes.iter().all(|f| f.status() == BlkStatus::OK));
        Ok(())
    }

    #[test]
    fn merges() -> Result {
        let mut fakes = KVec::new();
        let mut a = filled(&mut fakes, 2)?;
        let mut b = filled(&mut fakes, 3)?;
        let mut empty = BioList::new();
        a.append(&mut empty);
        empty.append(&mut a);
        assert!(a.is_empty() && a.pop().is_none());
        empty.append(&mut b);
        assert!(b.is_empty());
        assert!(sectors(&empty)?[..] == [0, 1, 0, 1, 2]);
        let all = empty.take();
        assert!(empty.is_empty() && empty.iter().next().is_none());
        let mut even = BioList::new();
        for bio in all.into_iter().filter(|b| b.data() % 2 == 0) {
            even.push(bio);
        }
        assert!(sectors(&even)?[..] == [0, 0, 2]);
        even.end(BlkStatus::OK);
        let failed = fakes.iter().filter(|f| f.status() == BlkStatus::IOERR);
        assert_eq!(failed.count(), 2);
        Ok(())
    }

    #[test]
    fn fails_what_is_left() -> Result {
        let mut fakes = KVec::new();
        drop(filled(&mut fakes, 3)?);
        assert!(fakes.iter().all(|f| f.status() == BlkStatus::IOERR));
        Ok(())
    }
}
