// SPDX-License-Identifier: GPL-2.0

//! Failures at every point: an error, and a roll back to what was committed.

use super::model::{
    Checked,
    Op, //
};
use crate::{
    block_manager::BlockManager,
    memory::Io,
    platform::{
        allocation_failure_pending,
        fail_allocation, //
    },
    Error,
    Result, //
};

/// Does a bit of all, with counts above two in both maps.
const STEPS: &[Op] = &[
    Op::NewData(5),
    Op::NewUsers(10),
    Op::IncData(100, 40),
    Op::IncData(100, 40),
    Op::IncData(120, 40),
    Op::IncUser(1),
    Op::IncUser(1),
    Op::IncUser(1),
    Op::ShadowUser(2),
    Op::SetData(3, 17),
    Op::Commit,
    Op::DropCache,
    Op::DecData(110, 30),
    Op::DecUser(1),
    Op::DecUser(1),
    Op::ShadowUser(1),
    Op::ShadowUser(4),
    Op::ExtendData(17000),
    Op::ExtendMetadata(17000),
    Op::NewUsers(60),
    Op::NewData(3),
    Op::NewDataRun(100, 1000, 30),
    Op::NewDataRun(50, 1000, 0),
    Op::DropCache,
    Op::DecData(0, 600),
    Op::SetData(3, 0),
    Op::Commit,
    Op::DropCache,
    Op::IncData(16300, 100),
    Op::DecUser(0),
];

/// Runs all steps, and again from the last commit after the first failure.
///
/// The superblock tells whether a commit that failed was one.
fn run(expected: impl Fn(Error) -> bool) -> Result<bool> {
    let mut c = match Checked::new(300, 500) {
        Ok(c) => c,
        Err(e) => {
            assert!(expected(e), "{e:?}");
            return Ok(true);
        }
    };
    let mut failed = false;
    let mut from = 0;
    let mut step = 0;
    while let Some(op) = STEPS.get(step) {
        match c.apply(*op) {
            Ok(()) => {
                step += 1;
                if matches!(op, Op::Commit) {
                    from = step;
                }
            }
            Err(e) => {
                assert!(!failed && expected(e), "step {step}: {e:?}");
                failed = true;
                // Nobody may do as if nothing had happened.
                let id = c.world.id;
                let new = c.model.clone();
                c.world.bm.reset();
                let world = super::world::World::open(c.world.bm)?;
                let was_committed = matches!(op, Op::Commit) && world.id == id + 1;
                assert!(was_committed || world.id == id);
                if was_committed {
                    step += 1;
                    from = step;
                } else {
                    step = from;
                }
                let model = if was_committed { new } else { c.committed };
                c = Checked::begin(world, model)?;
            }
        }
    }
    c.commit()?;
    c.verify()?;
    Ok(failed)
}

#[test]
fn succeeds_without_failures() -> Result {
    assert!(!run(|_| false)?);
    Ok(())
}

/// Fails the first, the second and so on, until there are no more of them.
fn each(io: Io) -> Result {
    for n in 0.. {
        let mut c = Checked::new(300, 500)?;
        c.world.bm.fail(io, n);
        let mut failed = false;
        for op in STEPS {
            let id = c.world.id;
            let Err(e) = c.apply(*op) else {
                continue;
            };
            assert_eq!(e, Error::Io(5));
            assert!(!failed);
            failed = true;

            let new = c.model.clone();
            c.world.bm.reset();
            let world = super::world::World::open(c.world.bm)?;
            let was_committed = matches!(op, Op::Commit) && world.id == id + 1;
            assert!(was_committed || world.id == id);
            let model = if was_committed { new } else { c.committed };
            c = Checked::begin(world, model)?;
        }
        let is_over = c.world.bm.clear_fault();
        c.commit()?;
        c.verify()?;
        if is_over {
            assert!(!failed);
            assert!(n > 3);
            return Ok(());
        }
        assert!(failed, "failure {n} was hidden");
    }
    Ok(())
}

#[test]
fn each_read_fails() -> Result {
    each(Io::Read)
}

#[test]
fn each_write_fails() -> Result {
    each(Io::Write)
}

#[test]
fn each_flush_fails() -> Result {
    each(Io::Flush)
}

#[test]
fn each_allocation_fails() -> Result {
    let mut nr_failed = 0;
    for n in 0.. {
        fail_allocation(Some(n));
        let result = run(|e| e == Error::NoMemory);
        let pending = allocation_failure_pending();
        fail_allocation(None);
        nr_failed += u64::from(result?);
        if pending {
            break;
        }
    }
    // Only the set of shadows may hide one.
    assert!(nr_failed > 20, "{nr_failed}");
    Ok(())
}

#[test]
fn read_only_refuses() -> Result {
    let mut c = Checked::new(300, 500)?;
    c.commit()?;
    c.world.bm.set_read_only(true);
    for op in STEPS {
        match c.apply(*op) {
            Err(e) => assert_eq!(e, Error::ReadOnly, "{op:?}"),
            Ok(()) => assert!(matches!(
                op,
                // There is nothing to change, or it does not change anything.
                Op::DecData(..)
                    | Op::IncUser(_)
                    | Op::DecUser(_)
                    | Op::ShadowUser(_)
                    | Op::DropCache
            )),
        }
    }
    c.world.bm.set_read_only(false);
    let mut c = c.roll_back()?;
    c.apply(Op::NewUsers(1))?;
    c.commit()?;
    c.verify()
}
