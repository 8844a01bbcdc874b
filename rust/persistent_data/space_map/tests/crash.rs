// SPDX-License-Identifier: GPL-2.0

//! Crashes: what is found afterwards is what was committed last, or what was just being committed.

use proptest::prelude::*;

use super::{
    model::{
        op,
        Checked,
        Op, //
    },
    world::{
        World,
        SUPERBLOCK, //
    },
};
use crate::{
    block::BlockNr,
    memory::{
        Io,
        MemoryBm, //
    },
    Error,
    Result, //
};

/// What a crash does to a block that is not stable.
#[derive(Clone, Copy, Debug)]
enum Loss {
    All,
    None,
    /// Those where a bit of the seed is not set.
    Some(u64),
}

impl Loss {
    fn keeps(self, block: BlockNr) -> bool {
        match self {
            Self::All => false,
            Self::None => true,
            Self::Some(seed) => (seed ^ block).wrapping_mul(0x61c8_8646_80b5_83eb) >> 63 != 0,
        }
    }

    fn crash(self, bm: &MemoryBm) -> MemoryBm {
        bm.crash_keeping(|b| self.keeps(b))
    }
}

fn loss() -> impl Strategy<Value = Loss> {
    prop_oneof![
        Just(Loss::All),
        Just(Loss::None),
        any::<u64>().prop_map(Loss::Some)
    ]
}

/// Applies all; says how many transactions were committed.
fn apply(c: &mut Checked, ops: &[Op]) -> Result {
    for op in ops {
        c.apply(*op)?;
    }
    Ok(())
}

/// Crashes before the commit, in each of its I/Os, and after it.
fn crash_around_commit(before: &[Op], during: &[Op], loss: Loss) -> Result {
    let prepare = || {
        let mut c = Checked::new(400, 20000)?;
        apply(&mut c, before)?;
        c.commit()?;
        apply(&mut c, during)?;
        Ok::<_, Error>(c)
    };

    // Without any of the commit: the superblock is not even changed.
    let c = prepare()?;
    let committed = c.committed.clone();
    Checked::open(loss.crash(&c.world.bm), committed)?;

    for io in [Io::Flush, Io::Write] {
        for n in 0.. {
            let mut c = prepare()?;
            let (old, new, id) = (c.committed.clone(), c.model.clone(), c.world.id);
            c.world.bm.fail(io, n);
            let result = c.commit();
            let went_through = c.world.bm.clear_fault();
            assert_eq!(result.is_ok(), went_through);

            let superblock_lost =
                c.world.bm.unstable_blocks().contains(&SUPERBLOCK) && !loss.keeps(SUPERBLOCK);
            let bm = loss.crash(&c.world.bm);
            let found = World::open(loss.crash(&bm))?.id;
            assert!(found == id || found == id + 1);
            if went_through {
                assert_eq!(found, id + 1);
            }
            if superblock_lost {
                assert_eq!(found, id);
            }
            let mut c = Checked::open(bm, if found == id { old } else { new })?;
            // Life goes on.
            match c.apply(Op::NewUsers(1)).and_then(|()| c.commit()) {
                Ok(()) => c.verify()?,
                Err(e) => assert_eq!(e, Error::NoSpace),
            }
            if went_through {
                break;
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn crashes_around_a_commit(
        before in prop::collection::vec(op(), 0..12),
        during in prop::collection::vec(op(), 1..12),
        loss in loss(),
    ) {
        match crash_around_commit(&before, &during, loss) {
            Ok(()) | Err(Error::NoSpace) => {}
            Err(e) => prop_assert!(false, "{:?}", e),
        }
    }
}
