// SPDX-License-Identifier: GPL-2.0

//! Which devices have changes that are not committed, so that a commit has to do with no other ones.

use kernel::{
    list::{
        List,
        ListArc, //
    },
    sync::Arc, //
};

use crate::mapping_cache::MappingCache;

/// The caches of devices that were changed in this transaction. The lock of the metadata protects it.
pub(crate) struct Uncommitted(List<MappingCache>);

impl Uncommitted {
    pub(crate) const fn new() -> Self {
        Self(List::new())
    }

    /// Notes that the device of `cache` is being changed.
    pub(crate) fn note(&mut self, cache: &Arc<MappingCache>) {
        cache.set_uncommitted();
        if let Some(cache) = ListArc::try_from_arc_borrow(cache.as_arc_borrow()) {
            self.0.push_back(cache);
        }
    }

    /// The transaction is committed.
    pub(crate) fn committed(&mut self) {
        while let Some(cache) = self.0.pop_front() {
            cache.into_arc().set_committed();
        }
    }

    /// The transaction is lost.
    pub(crate) fn lost(&mut self) {
        while let Some(cache) = self.0.pop_front() {
            cache.into_arc().lose_uncommitted();
        }
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_thin_uncommitted)]
mod tests {
    use super::*;
    use crate::cache_pages::MappingCaches;
    use kernel::prelude::*;
    use thin_metadata::DeviceId;

    fn id(id: u64) -> Result<DeviceId> {
        DeviceId::try_from(id).map_err(|_| EINVAL)
    }

    #[test]
    fn changes_are_uncommitted_committed_or_lost() -> Result {
        let caches = MappingCaches::new()?;
        let mut uncommitted = Uncommitted::new();
        let cache = caches.open(id(1)?, 0)?;
        let other = caches.open(id(2)?, 0)?;
        uncommitted.lost();
        assert!(cache.is_committed());
        uncommitted.note(&cache);
        assert!(!cache.is_committed() && other.is_committed());
        uncommitted.committed();
        uncommitted.lost();
        assert!(cache.is_committed());
        uncommitted.note(&cache);
        uncommitted.note(&cache);
        uncommitted.lost();
        uncommitted.note(&cache);
        uncommitted.note(&other);
        uncommitted.committed();
        assert!(!cache.is_committed() && other.is_committed());
        caches.close(id(1)?);
        caches.close(id(2)?);
        Ok(())
    }

    /// Of ten thousand devices, a commit has to do with the one that was changed.
    #[test]
    fn only_changed_devices_are_met() -> Result {
        let caches = MappingCaches::new()?;
        let mut uncommitted = Uncommitted::new();
        for number in 0..10_000 {
            caches.open(id(number)?, 0)?;
        }
        caches.with(id(4_711)?, |cache| uncommitted.note(cache));
        assert_eq!(uncommitted.0.iter().count(), 1);
        uncommitted.committed();
        assert!(uncommitted.0.is_empty());
        let mut all = 0;
        caches.for_each(|_, cache| all += usize::from(cache.is_committed()));
        assert_eq!(all, 10_000);
        for number in 0..10_000 {
            caches.close(id(number)?);
        }
        Ok(())
    }

    /// A device that was closed keeps no pages, though its changes are still to be committed.
    #[test]
    fn closed_devices_keep_nothing() -> Result {
        let caches = MappingCaches::new()?;
        let mut uncommitted = Uncommitted::new();
        let cache = caches.open(id(1)?, 0)?;
        cache.add_page(0)?;
        uncommitted.note(&cache);
        drop(cache);
        assert_eq!(caches.usage().pages, 1);
        caches.close(id(1)?);
        assert_eq!(caches.usage().pages, 0);

        let again = caches.open(id(1)?, 0)?;
        uncommitted.note(&again);
        uncommitted.committed();
        assert!(again.is_committed());
        caches.close(id(1)?);
        Ok(())
    }
}
