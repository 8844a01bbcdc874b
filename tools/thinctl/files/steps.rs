// SPDX-License-Identifier: GPL-2.0

//! Steps that are taken on the file system, and the one at which the machine stops.

use std::{
    cell::RefCell,
    io,
    path::{
        Path,
        PathBuf, //
    },
};

use super::Step;

#[derive(Default)]
struct Steps {
    log: Vec<(Step, PathBuf)>,
    /// How many can still be taken.
    left: Option<usize>,
    /// Whether more can be taken after one that could not.
    goes_on: bool,
}

thread_local! {
    static STEPS: RefCell<Steps> = RefCell::default();
}

/// Goes before each step.
pub(crate) fn step(step: Step, path: &Path) -> io::Result<()> {
    STEPS.with_borrow_mut(|steps| {
        if let Some(left) = &mut steps.left {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None if steps.goes_on => {
                    steps.left = None;
                    return Err(io::Error::other("that has failed"));
                }
                None => return Err(io::Error::other("the machine has stopped")),
            }
        }
        steps.log.push((step, path.to_owned()));
        Ok(())
    })
}

/// What `f` does, with all steps it takes.
pub(crate) fn logged<T>(f: impl FnOnce() -> T) -> (T, Vec<(Step, PathBuf)>) {
    STEPS.take();
    let result = f();
    (result, STEPS.take().log)
}

/// What `f` does if the machine stops after this number of steps; whether it has stopped.
pub(crate) fn stopped<T>(left: usize, f: impl FnOnce() -> T) -> (T, bool) {
    STEPS.set(Steps {
        left: Some(left),
        ..Steps::default()
    });
    let result = f();
    let steps = STEPS.take();
    // The step that failed is not in the log.
    (result, steps.left == Some(0) && steps.log.len() == left)
}

/// What `f` does if one step fails after this number of them; whether one has.
pub(crate) fn failed<T>(left: usize, f: impl FnOnce() -> T) -> (T, bool) {
    STEPS.set(Steps {
        left: Some(left),
        goes_on: true,
        ..Steps::default()
    });
    let result = f();
    (result, STEPS.take().left.is_none())
}
