// SPDX-License-Identifier: GPL-2.0

//! What a thin device keeps along with each of its bios.

use dm::{
    Bio,
    BioList, //
};
use kernel::sync::Arc;

use crate::{
    in_flight::Epoch,
    mapping::Preparing,
    pool_metadata::Transaction,
    thin::Thin, //
};

/// A bio of a thin device, owned.
pub(crate) type ThinBio = Bio<PerBio>;

/// A list of such bios.
pub(crate) type ThinBios = BioList<PerBio>;

/// The data kept along with a bio.
#[derive(Default)]
pub(crate) struct PerBio {
    /// Set while the bio is on its way to the data device.
    pub(crate) epoch: Option<Epoch>,
    /// The mapping that the bio's data is for: the bio fills a whole new block, and has ended only when the
    /// mapping is in the metadata.
    pub(crate) overwrites: Option<Preparing>,
    /// Whether the bio, which was on its way to the data device, asked for a commit. It may not say so itself any more: a
    /// device without a write cache has it forget.
    pub(crate) wants_commit: bool,
    /// The transaction whose commit the bio waits for, if it is among those who do.
    pub(crate) waits_for: Transaction,
    /// The device, once the bio has been handed to the worker.
    pub(crate) thin: Option<Arc<Thin>>,
}

/// Sorts bios by their first sector, keeping the order of those that begin at the same one.
///
/// A merge sort on the lists themselves, as there may be no memory to be had: run `i` in `runs` has
/// `2^i` bios.
pub(crate) fn sort_by_sector(mut bios: ThinBios) -> ThinBios {
    const RUNS: usize = 24;
    let mut runs: [ThinBios; RUNS] = core::array::from_fn(|_| ThinBios::new());

    while let Some(bio) = bios.pop() {
        let mut run = ThinBios::new();
        run.push(bio);
        for (i, slot) in runs.iter_mut().enumerate() {
            if slot.is_empty() {
                *slot = run;
                break;
            }
            run = merge(core::mem::take(slot), run);
            if i == RUNS - 1 {
                *slot = run;
                break;
            }
        }
    }
    runs.into_iter()
        .fold(ThinBios::new(), |sorted, run| merge(run, sorted))
}

/// Merges two sorted lists; where sectors are equal, those of `earlier` come first.
fn merge(mut earlier: ThinBios, mut later: ThinBios) -> ThinBios {
    let mut merged = ThinBios::new();
    loop {
        let next = match (earlier.peek(), later.peek()) {
            (Some(a), Some(b)) if b.sector() < a.sector() => later.pop(),
            (Some(_), _) => earlier.pop(),
            (None, _) => {
                merged.append(&mut later);
                return merged;
            }
        };
        match next {
            Some(bio) => merged.push(bio),
            None => return merged,
        }
    }
}
