// SPDX-License-Identifier: GPL-2.0

//! Failing I/O and failing memory, at every point of a run.

use std::rc::Rc;

use persistent_data::{
    memory::Io,
    platform::{
        allocation_failure_pending,
        fail_allocation, //
    },
};

use crate::{
    check::check,
    image::Disk,
    op::{
        Blocks,
        Op,
        Profile, //
    },
    recorder::{
        Fault,
        Meaning,
        Recorder, //
    },
    replay::{
        Choice,
        Judge, //
    },
    rng::Rng,
    world::{
        Violation,
        World, //
    },
};

/// So many commands go wrong before lasting faults end.
const LASTING_OPS: u64 = 4;

/// One of so many runs is played with losses of power, too.
const CRASHES: u64 = 16;

/// What fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// I/O of a kind, once or from then on.
    Io(Io, bool),
    /// One allocation.
    Memory,
}

/// All that can fail.
pub const ALL: [What; 7] = [
    What::Io(Io::Read, false),
    What::Io(Io::Read, true),
    What::Io(Io::Write, false),
    What::Io(Io::Write, true),
    What::Io(Io::Flush, false),
    What::Io(Io::Flush, true),
    What::Memory,
];

impl What {
    fn start(self, device: &Recorder, after: u64) {
        match self {
            Self::Io(io, is_lasting) => {
                device.set_fault(Some(Fault {
                    io,
                    after,
                    is_lasting,
                }));
            }
            Self::Memory => fail_allocation(Some(after)),
        }
    }

    fn has_come(self, device: &Recorder) -> bool {
        match self {
            Self::Io(..) => device.has_failed(),
            Self::Memory => !allocation_failure_pending(),
        }
    }

    /// Whether more may fail.
    fn is_active(self, device: &Recorder) -> bool {
        match self {
            Self::Io(..) => device.has_fault(),
            Self::Memory => allocation_failure_pending(),
        }
    }

    /// Ends it, and says whether it came.
    fn stop(self, device: &Recorder) -> bool {
        let has_come = self.has_come(device);
        device.set_fault(None);
        fail_allocation(None);
        has_come
    }

    fn errno(self) -> i32 {
        match self {
            Self::Io(..) => 5,
            Self::Memory => 12,
        }
    }
}

/// A pool on a disk, and what happens to it.
pub struct Scene {
    disk: Disk,
    meaning: Meaning,
    ops: Vec<Op>,
    seed: u64,
}

/// All kinds of commands, in an order in which each has something to do.
fn all_ops() -> Vec<Op> {
    let blocks = |begin, count, distance| Blocks {
        begin,
        count,
        distance,
    };
    vec![
        Op::LookUp(1, 3),
        Op::Create(4),
        Op::Insert(4, blocks(1000, 12, 1)),
        Op::InsertTogether(4, blocks(1005, 200, 3), 5),
        Op::Snap(5, 1),
        Op::Insert(1, blocks(380, 6, 7)),
        Op::LookUp(5, 10),
        Op::Remove(2, 50, 300),
        Op::InsertTogether(5, blocks(0, 30, 1), 0),
        Op::WriteBack(7),
        Op::References(3, 5),
        Op::Commit,
        Op::LookUp(2, 0),
        Op::Release,
        Op::Delete(3),
        Op::ResizeData(1700),
        Op::ResizeMetadata(9),
        Op::Reserve,
        Op::TransactionId(77),
        Op::Steps(3, true),
        Op::Insert(1, blocks(5, 3, 1)),
        Op::Steps(4, false),
        Op::RemoveAll(4),
        Op::Abort,
        Op::LookUp(4, 1000),
        Op::NeedsCheck,
        Op::Create(7),
        Op::Reopen,
        Op::RemoveAll(2),
        Op::Commit,
    ]
}

impl Scene {
    /// All kinds of commands.
    pub fn all() -> Self {
        let blocks = |begin, count| Blocks {
            begin,
            count,
            distance: 1,
        };
        let before = [
            Op::ResizeData(1300),
            Op::Create(1),
            Op::InsertTogether(1, blocks(0, 400), 0),
            Op::Snap(2, 1),
            Op::Snap(3, 2),
            Op::Insert(2, blocks(100, 20)),
            Op::Reserve,
            Op::Insert(3, blocks(300, 20)),
            Op::Commit,
        ];
        Self::after(160, &before, all_ops(), 0)
    }

    /// Those of a seed.
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0xfa17);
        let profile = Profile {
            nr_ops: 25,
            most_blocks: 60,
            ..Profile::of_seed(seed, &mut rng)
        };
        let mut before = profile.first_ops();
        before.extend(profile.ops(&mut rng));
        before.push(Op::Commit);
        let ops = profile.ops(&mut rng);
        Self::after(profile.nr_metadata, &before, ops, seed)
    }

    fn after(nr_metadata: u64, before: &[Op], ops: Vec<Op>, seed: u64) -> Self {
        let mut world = World::format(nr_metadata);
        for op in before {
            world.apply(*op).expect("nothing fails here");
        }
        Self {
            disk: world.device().disk(),
            meaning: world.device().shown(),
            ops,
            seed,
        }
    }

    /// What it begins with.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Has each chance of a fault taken, one in a run. Gives how many there were.
    pub fn each(&self, what: What, judge: &mut Judge) -> Result<u64, Violation> {
        for after in 0.. {
            let came = self
                .run(what, after, judge)
                .map_err(|e| format!("{what:?} after {after}: {e}"))?;
            match what {
                What::Io(..) => judge.counts.io_faults += u64::from(came),
                What::Memory => judge.counts.memory_faults += u64::from(came),
            }
            if !came {
                return Ok(after);
            }
        }
        Ok(0)
    }

    fn run(&self, what: What, after: u64, judge: &mut Judge) -> Result<bool, Violation> {
        let mut world =
            World::open(self.disk.clone(), self.meaning.clone()).map_err(|e| e.to_string())?;
        let device = world.device().clone();
        world.expect_faults();
        what.start(&device, after);
        let mut came = false;
        let mut ops_after = 0;
        for op in &self.ops {
            world.apply(*op).map_err(|e| format!("{op:?}: {e}"))?;
            ops_after += u64::from(what.has_come(&device));
            if ops_after == LASTING_OPS || (ops_after > 0 && !what.is_active(&device)) {
                came |= what.stop(&device);
            }
            if world.is_failed() && !what.is_active(&device) {
                world.reopen()?;
            }
        }
        came |= what.stop(&device);

        // Life goes on.
        match world.is_failed() {
            true => world.reopen()?,
            false => world.recover()?,
        }
        world.compare()?;
        for op in [Op::Create(9), Op::Snap(8, 9), Op::Commit] {
            world.apply(op)?;
        }
        world.compare()?;
        let content = check(&device.disk())?;
        let shown = device.shown().ok_or("there is no superblock")?;
        content.expect(&shown.content)?;
        content.expect(&world.content())?;
        if after.is_multiple_of(CRASHES) {
            let mut rng = Rng::new(self.seed ^ after);
            judge.replay(
                self.disk.clone(),
                self.meaning.clone(),
                &device.events(),
                &mut rng,
            )?;
        }
        Ok(came)
    }

    /// Has each chance of a fault taken while the pool is opened. Gives how many there were.
    pub fn each_open(&self, what: What, judge: &mut Judge) -> Result<u64, Violation> {
        each_open(&self.disk, &self.meaning, what, judge)
    }
}

/// The same, while a pool is made.
pub fn each_format(what: What, judge: &mut Judge) -> Result<u64, Violation> {
    each_open(&Disk::new(30), &None, what, judge)
}

fn each_open(
    disk: &Disk,
    meaning: &Meaning,
    what: What,
    judge: &mut Judge,
) -> Result<u64, Violation> {
    for after in 0.. {
        let device = Rc::new(Recorder::new(disk.clone(), 0, meaning.clone()));
        what.start(&device, after);
        let result = World::open_device(device.clone()).map(drop);
        let came = what.stop(&device);
        match result {
            Err(e) if came && e.errno() == what.errno() => {}
            Err(e) => return Err(format!("{what:?} after {after}: {e}")),
            Ok(()) => {}
        }
        if meaning.is_some() && device.disk().hash() != disk.hash() {
            return Err(format!("{what:?} after {after}: the device has changed"));
        }
        let mut world = World::open(device.disk(), device.shown()).map_err(|e| e.to_string())?;
        world.compare()?;
        let mut rng = Rng::new(after);
        judge.replay(disk.clone(), meaning.clone(), &device.events(), &mut rng)?;
        if !came {
            return Ok(after);
        }
        match what {
            What::Io(..) => judge.counts.io_faults += 1,
            What::Memory => judge.counts.memory_faults += 1,
        }
    }
    Ok(0)
}

/// All faults of a seed; seed 0 is that of all commands in a fixed order.
pub fn run_seed(seed: u64, judge: &mut Judge) -> Result<u64, Violation> {
    let mut sum = 0;
    judge.counts.runs += 1;
    let scene = match seed {
        0 => {
            for what in ALL {
                sum += each_format(what, judge)?;
            }
            Scene::all()
        }
        seed => Scene::of_seed(seed),
    };
    Ok(sum + run_all(&scene, judge)?)
}

/// A judge for what losses of power leave after faults.
pub fn judge() -> Judge {
    Judge::with_choice(Choice {
        exhaustive: 3,
        random: 4,
    })
}

/// All faults of a scene, each in a run of its own. Gives how many there were.
pub fn run_all(scene: &Scene, judge: &mut Judge) -> Result<u64, Violation> {
    let mut sum = 0;
    for what in ALL {
        sum += scene.each(what, judge)?;
        sum += scene.each_open(what, judge)?;
    }
    Ok(sum)
}
