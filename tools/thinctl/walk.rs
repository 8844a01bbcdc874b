// SPDX-License-Identifier: GPL-2.0

//! Walks over metadata, which whoever is told of what is found can end.

use std::ops::ControlFlow;

use crate::error::{
    Error,
    Result, //
};

/// What a callback of a library's walk gives.
type Visited<E> = std::result::Result<(), E>;

/// Runs a walk of a library, whose callbacks can give errors `E` of the library only. `run` is handed a function that
/// makes of what says whether to go on what the library understands. Gives what has ended the walk, if anything has.
pub fn walk<B, E: Into<Error> + StopsWalks>(
    run: impl FnOnce(&mut dyn FnMut(ControlFlow<B>) -> Visited<E>) -> Visited<E>,
) -> Result<ControlFlow<B>> {
    let mut end = ControlFlow::Continue(());
    let walked = run(&mut |flow| match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(_) => {
            end = flow;
            Err(E::STOP)
        }
    });
    match end {
        ControlFlow::Continue(()) => walked
            .map(|()| ControlFlow::Continue(()))
            .map_err(Into::into),
        end => Ok(end),
    }
}

/// As [`walk`], which errors of this crate end.
pub fn try_walk<E: Into<Error> + StopsWalks>(
    run: impl FnOnce(&mut dyn FnMut(Result) -> Visited<E>) -> Visited<E>,
) -> Result {
    let flow = walk(|visit| {
        run(&mut |result| {
            visit(match result {
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => ControlFlow::Break(e),
            })
        })
    })?;
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(e) => Err(e),
    }
}

/// A library's errors, of which one ends a walk; nobody sees it.
pub trait StopsWalks: Sized {
    /// That one.
    const STOP: Self;
}

impl StopsWalks for thin_metadata::Error {
    const STOP: Self = Self::Failed;
}

impl StopsWalks for persistent_data::Error {
    const STOP: Self = Self::Invalid;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A walk over numbers, as a library might have it.
    fn numbers(
        f: &mut dyn FnMut(u32) -> thin_metadata::Result,
        fails_at: u32,
    ) -> thin_metadata::Result {
        for n in 0..10 {
            if n == fails_at {
                return Err(thin_metadata::Error::NoSnap);
            }
            f(n)?;
        }
        Ok(())
    }

    fn until(last: u32, fails_at: u32) -> Result<ControlFlow<u32>> {
        walk(|visit| {
            numbers(
                &mut |n| {
                    visit(match n == last {
                        true => ControlFlow::Break(n),
                        false => ControlFlow::Continue(()),
                    })
                },
                fails_at,
            )
        })
    }

    #[test]
    fn a_walk_ends_as_it_is_told() {
        assert_eq!(until(3, 20).unwrap(), ControlFlow::Break(3));
        assert_eq!(until(20, 20).unwrap(), ControlFlow::Continue(()));
        assert!(matches!(
            until(7, 5),
            Err(Error::Metadata(thin_metadata::Error::NoSnap))
        ));
        assert_eq!(until(3, 5).unwrap(), ControlFlow::Break(3));
        let failed = try_walk(|visit| {
            numbers(
                &mut |n| {
                    visit(match n {
                        4 => Err(Error::Interrupted(15)),
                        _ => Ok(()),
                    })
                },
                20,
            )
        });
        assert!(matches!(failed, Err(Error::Interrupted(15))));
    }
}
