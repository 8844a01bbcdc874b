// SPDX-License-Identifier: GPL-2.0

//! Queues of things that have something to do.
//!
//! Whoever gives one of them something to do adds it to the queue after that; whoever takes it out looks for what there
//! is to do after that. It is in the queue at most once: who finds it there knows that it has not been taken out
//! yet, so what it was given before will be found, provided that it is given and looked for under one lock. That it is in the queue is noted in itself, with no lock, and so are the
//! links: nothing is allocated.

use kernel::{
    list::{
        List,
        ListArc,
        ListItem,
        TryNewListArc, //
    },
    prelude::*,
    sync::{
        new_spinlock_irq,
        Arc,
        SpinLockIrq, //
    }, //
};

/// A queue, first in first out.
#[pin_data]
pub(crate) struct Queue<T: ListItem + TryNewListArc> {
    #[pin]
    list: SpinLockIrq<List<T>>,
}

/// What was taken out of a queue.
pub(crate) struct Taken<T: ListItem>(List<T>);

impl<T: ListItem + TryNewListArc> Queue<T> {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            list <- new_spinlock_irq!(List::new(), "dm_thin::Queue"),
        })
    }

    /// Adds `one`, unless it is there already; any context.
    pub(crate) fn add(&self, one: &Arc<T>) {
        if let Some(one) = ListArc::try_from_arc_borrow(one.as_arc_borrow()) {
            self.list.lock().push_back(one);
        }
    }

    /// Takes out all that there are now. Each can be added again from when the iterator gives it.
    pub(crate) fn take(&self) -> Taken<T> {
        Taken(core::mem::take(&mut *self.list.lock()))
    }
}

impl<T: ListItem> Iterator for Taken<T> {
    type Item = Arc<T>;

    fn next(&mut self) -> Option<Arc<T>> {
        Some(self.0.pop_front()?.into_arc())
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_thin_queue)]
mod tests {
    use super::*;
    use kernel::list::{
        impl_list_arc_safe,
        impl_list_item,
        AtomicTracker,
        ListLinks, //
    };

    #[pin_data]
    struct Item {
        number: usize,
        #[pin]
        links: ListLinks,
        #[pin]
        tracker: AtomicTracker,
    }

    impl_list_arc_safe! {
        impl ListArcSafe<0> for Item { tracked_by tracker: AtomicTracker; }
    }
    impl_list_item! {
        impl ListItem<0> for Item { using ListLinks { self.links }; }
    }

    fn item(number: usize) -> Result<Arc<Item>> {
        Arc::pin_init(
            pin_init!(Item {
                number,
                links <- ListLinks::new(),
                tracker <- AtomicTracker::new(),
            }),
            GFP_KERNEL,
        )
    }

    fn numbers(taken: Taken<Item>) -> impl Iterator<Item = usize> {
        taken.map(|item| item.number)
    }

    /// Whoever empties it meets those that were added, and no other one of ten thousand.
    #[test]
    fn gives_what_was_added() -> Result {
        let queue = KBox::pin_init(Queue::new(), GFP_KERNEL)?;
        let mut items = KVVec::new();
        for number in 0..10_000 {
            items.push(item(number)?, GFP_KERNEL)?;
        }
        assert_eq!(queue.take().count(), 0);
        for number in [9_999, 17, 4_711, 17, 9_999] {
            queue.add(items.get(number).ok_or(EINVAL)?);
        }
        assert!(numbers(queue.take()).eq([9_999, 17, 4_711]));
        assert_eq!(queue.take().count(), 0);

        items.iter().for_each(|item| queue.add(item));
        assert!(numbers(queue.take()).eq(0..10_000));
        Ok(())
    }

    #[test]
    fn takes_again_what_it_has_given() -> Result {
        let queue = KBox::pin_init(Queue::new(), GFP_KERNEL)?;
        let (a, b) = (item(1)?, item(2)?);
        queue.add(&a);
        queue.add(&b);
        let mut taken = queue.take();
        assert!(taken.next().is_some_and(|one| Arc::ptr_eq(&one, &a)));
        // What was not given yet will be.
        queue.add(&b);
        queue.add(&a);
        assert!(numbers(taken).eq([2]));
        queue.add(&b);
        assert!(numbers(queue.take()).eq([1, 2]));
        Ok(())
    }

    /// What nobody else has lives as long as it is in the queue.
    #[test]
    fn keeps_what_is_in_it() -> Result {
        let queue = KBox::pin_init(Queue::new(), GFP_KERNEL)?;
        let a = item(1)?;
        queue.add(&a);
        drop(a);
        let mut taken = queue.take();
        let a = taken.next().ok_or(EINVAL)?;
        assert!(a.number == 1 && taken.next().is_none());
        assert!(Arc::into_unique_or_drop(a).is_some());
        queue.add(&item(2)?);
        Ok(())
    }
}
