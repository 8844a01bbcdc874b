// SPDX-License-Identifier: GPL-2.0

//! The bio prison in all orders in which bios come, and changes of mappings begin and end.
//!
//! What a bio may rely on: while blocks are in a cell, no bio for any of them goes on; when the cell is released, the
//! bios come out in the order in which they came; none is lost, and none waits for a cell that has nothing to do with it.

use crate::{
    mutants,
    per_bio::{
        ThinBio,
        ThinBios, //
    },
    prelude::Result, //
};
use std::{
    ops::Range,
    panic, //
};
use thin_metadata::VirtualBlock;

/// The cells: the module's, or a mutant of them.
pub(crate) trait Prison {
    type Id;

    fn make() -> Self;
    fn wait(&mut self, bio: ThinBio) -> Option<ThinBio>;
    fn lock(&mut self, device: u64, blocks: &Range<VirtualBlock>) -> Result<Self::Id>;
    fn release(&mut self, cell: Self::Id) -> ThinBios;
}

macro_rules! impl_prison {
    ($($module:ident)::+) => {
        impl $crate::prison::Prison for $crate::$($module)::+::Cells {
            type Id = $crate::$($module)::+::CellId;

            fn make() -> Self {
                Self::new(2, 2).unwrap()
            }

            fn wait(&mut self, bio: $crate::per_bio::ThinBio) -> Option<$crate::per_bio::ThinBio> {
                let device = bio.device.try_into().unwrap();
                self.wait(device, &bio.blocks.clone(), bio)
            }

            fn lock(
                &mut self,
                device: u64,
                blocks: &::std::ops::Range<::thin_metadata::VirtualBlock>,
            ) -> $crate::prelude::Result<Self::Id> {
                self.lock(device.try_into().unwrap(), blocks)
            }

            fn release(&mut self, cell: Self::Id) -> $crate::per_bio::ThinBios {
                self.release(cell)
            }
        }
    };
}
pub(crate) use impl_prison;

impl_prison!(cells);

/// The devices and blocks that bios and changes are for.
const PLACES: [(u64, Range<VirtualBlock>); 8] = [
    (1, 0..1),
    (1, 1..2),
    (1, 2..3),
    (1, 0..2),
    (1, 1..3),
    (1, 0..3),
    (2, 0..1),
    (2, 1..3),
];

/// What the worker meets.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A bio that changes nothing.
    Pass(usize),
    /// A bio that begins a change unless it has to wait.
    Change(usize),
    /// The end of a change, one of those at work.
    End(usize),
}

/// A cell that was made.
struct Change<Id> {
    cell: Id,
    place: usize,
    /// The bios that wait, by their numbers.
    waiting: Vec<usize>,
}

fn overlap(a: usize, b: usize) -> bool {
    let ((device, a), (other, b)) = (&PLACES[a], &PLACES[b]);
    device == other && a.start < b.end && b.start < a.end
}

/// Plays one order of events. Gives how many changes are at work in the end, unless an event of `End` has none.
fn play<P: Prison>(events: &[Event]) -> Option<usize> {
    let mut cells = P::make();
    let mut changes: Vec<Change<P::Id>> = Vec::new();
    let mut held = 0;
    for (number, event) in events.iter().enumerate() {
        match *event {
            Event::Pass(place) | Event::Change(place) => {
                let (device, blocks) = PLACES[place].clone();
                let bio = ThinBio {
                    number,
                    device,
                    blocks: blocks.clone(),
                };
                let in_the_way = changes.iter().any(|change| overlap(change.place, place));
                match cells.wait(bio) {
                    Some(bio) => {
                        assert!(!in_the_way, "a bio went on into a change");
                        assert_eq!(bio.number, number);
                        if matches!(event, Event::Change(_)) {
                            let cell = cells.lock(device, &blocks).expect("nothing is in the way");
                            changes.push(Change {
                                cell,
                                place,
                                waiting: Vec::new(),
                            });
                        }
                    }
                    None => {
                        // Of several changes it waits for the first in the order of blocks.
                        let first = changes
                            .iter_mut()
                            .filter(|change| overlap(change.place, place))
                            .min_by_key(|change| PLACES[change.place].1.start);
                        first.expect("a bio waits for nothing").waiting.push(number);
                        held += 1;
                    }
                }
            }
            Event::End(which) => {
                if which >= changes.len() {
                    return None;
                }
                let change = changes.remove(which);
                held -= end(&mut cells, change);
            }
        }
    }
    let at_work = changes.len();
    for change in changes {
        held -= end(&mut cells, change);
    }
    assert_eq!(held, 0);
    Some(at_work)
}

/// Ends a change; gives how many bios had waited for it.
fn end<P: Prison>(cells: &mut P, change: Change<P::Id>) -> usize {
    let mut released = cells.release(change.cell);
    let mut numbers = Vec::new();
    while let Some(bio) = released.pop() {
        numbers.push(bio.number);
    }
    assert_eq!(numbers, change.waiting);
    numbers.len()
}

/// Plays all orders of up to `depth` events; gives their number.
fn play_all<P: Prison>(events: &mut Vec<Event>, depth: usize) -> u64 {
    let Some(at_work) = play::<P>(events) else {
        return 0;
    };
    let mut orders = 1;
    if events.len() < depth {
        let places = 0..PLACES.len();
        let next = places
            .clone()
            .map(Event::Pass)
            .chain(places.map(Event::Change))
            .chain((0..at_work).map(Event::End));
        for event in next {
            events.push(event);
            orders += play_all::<P>(events, depth);
            events.pop();
        }
    }
    orders
}

#[test]
fn no_bio_meets_a_change_or_is_lost() {
    let orders = play_all::<crate::cells::Cells>(&mut Vec::new(), 5);
    println!("{orders} orders");
    assert!(orders > 1_000_000);
}

#[test]
#[ignore = "takes minutes"]
fn no_bio_meets_a_change_or_is_lost_in_longer_orders() {
    let orders = play_all::<crate::cells::Cells>(&mut Vec::new(), 6);
    println!("{orders} orders");
}

macro_rules! fails {
    ($($mutant:ident)*) => {
        $(
            #[test]
            fn $mutant() {
                let played = panic::catch_unwind(|| {
                    play_all::<mutants::$mutant::Cells>(&mut Vec::new(), 4)
                });
                assert!(played.is_err());
            }
        )*
    };
}

fails! {
    wait_for_another_device
    wait_for_a_later_block
    pass_the_first_block
    pass_the_last_block
    look_from_the_next_block
    release_without_bios
    release_nothing
}
