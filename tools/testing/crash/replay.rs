// SPDX-License-Identifier: GPL-2.0

//! What a loss of power may leave, and whether that is right.
//!
//! At any time, any subset of the writes since the last flush may have reached the device, and of each write any subset of
//! its sectors. All that a loss of power within such an epoch can leave is among what one at its end can, so epochs are
//! played at their ends: all subsets of whole writes if they are few, else none, all, each alone, all but one, beginnings
//! and ends; and random subsets with torn writes.

use std::collections::HashSet;

use persistent_data::cached::CachedBm;
use thin_metadata::Metadata;

use crate::{
    check::check,
    image::{
        Blocks,
        Disk,
        ReadOnly, //
    },
    op::{
        Op,
        Profile, //
    },
    recorder::{
        Event,
        Meaning,
        Write, //
    },
    report::Counts,
    rng::Rng,
    tools,
    world::{
        Violation,
        World,
        PARAMS, //
    },
};

/// Up to so many writes, all subsets are played.
const EXHAUSTIVE: usize = 10;

/// How many random states of an epoch with more are played.
const RANDOM: usize = 48;

/// One of so many distinct states is given to `thin_check`.
const THIN_CHECK: u64 = 500;

/// One of so many distinct states is read by the library, to the last mapping.
const READ: u64 = 50;

/// Which states to play.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// Up to so many writes, all subsets are played.
    pub exhaustive: usize,
    /// How many random states.
    pub random: usize,
}

impl Default for Choice {
    fn default() -> Self {
        Self {
            exhaustive: EXHAUSTIVE,
            random: RANDOM,
        }
    }
}

/// Judges states, each of them once.
#[derive(Default)]
pub struct Judge {
    /// What was found so far.
    pub counts: Counts,
    seen: HashSet<u64>,
    choice: Choice,
    /// The number of the state within the run.
    state: u64,
    /// The state to keep the image of.
    wanted: Option<u64>,
    /// That image.
    pub image: Option<Vec<u8>>,
    /// States to go on from.
    kept: Vec<(Disk, Meaning)>,
    keep_one_in: u64,
}

/// How much of each write reaches the device: a bit for each sector.
type Masks = Vec<u8>;

impl Judge {
    /// One that plays other states than usual.
    pub fn with_choice(choice: Choice) -> Self {
        Self {
            choice,
            ..Self::default()
        }
    }

    /// Keeps the image of a state of the next run.
    pub fn want(&mut self, state: u64) {
        self.wanted = Some(state);
    }

    /// The hashes of all states.
    pub fn into_seen(self) -> HashSet<u64> {
        self.seen
    }

    /// How many states there were in this run.
    pub fn state(&self) -> u64 {
        self.state
    }

    /// How many distinct states there were.
    pub fn nr_distinct(&self) -> u64 {
        self.seen.len() as u64
    }

    /// Plays all of a seed: a run, and what comes after some losses of power in it.
    pub fn run(&mut self, seed: u64) -> Result<(), Violation> {
        self.state = 0;
        self.counts.runs += 1;
        let mut rng = Rng::new(seed);
        let profile = Profile::of_seed(seed, &mut rng);
        let zeroes = Disk::new(profile.nr_metadata);
        let mut world = World::format(profile.nr_metadata);
        let mut ops = profile.first_ops();
        ops.extend(profile.ops(&mut rng));
        self.play(&mut world, &ops)?;
        let events = world.device().events();
        drop(world);

        self.kept.clear();
        self.keep_one_in = 400;
        self.replay(zeroes, None, &events, &mut rng)?;

        // And once more, in what comes after.
        for depth in 0..2 {
            let mut kept = std::mem::take(&mut self.kept);
            kept.truncate(3);
            self.keep_one_in = if depth == 0 { 400 } else { u64::MAX };
            for (disk, meaning) in kept {
                self.counts.recoveries += 1;
                let mut world =
                    World::open(disk.clone(), meaning.clone()).map_err(|e| e.to_string())?;
                let after = Profile {
                    nr_ops: 14,
                    ..profile
                };
                self.play(&mut world, &after.ops(&mut rng))?;
                let events = world.device().events();
                self.replay(disk, meaning, &events, &mut rng)?;
            }
        }
        Ok(())
    }

    fn play(&mut self, world: &mut World, ops: &[Op]) -> Result<(), Violation> {
        for op in ops {
            world.apply(*op)?;
            self.counts.ops += 1;
        }
        world.apply(Op::Commit)?;
        world.compare()
    }

    /// Plays what losses of power in a record may leave; `disk` was stable at its beginning.
    pub fn replay(
        &mut self,
        mut disk: Disk,
        mut meaning: Meaning,
        events: &[Event],
        rng: &mut Rng,
    ) -> Result<(), Violation> {
        let mut writes: Vec<Write> = Vec::new();
        for event in events {
            match event {
                Event::Write(write) => writes.push(write.clone()),
                Event::Size(nr_blocks) => disk.resize(*nr_blocks),
                Event::Flush => {
                    self.epoch(&mut disk, &meaning, &writes, rng)?;
                    for write in writes.drain(..).filter(|write| !write.has_failed) {
                        disk.set(write.block, Some(write.data));
                        if write.block == 0 {
                            meaning = write.meaning;
                        }
                    }
                }
                Event::Committed(commit) => {
                    let is_stable = meaning
                        .as_ref()
                        .is_some_and(|stable| stable.content == commit.content);
                    // Another superblock may be on its way, if only its flags differ.
                    let may_change = writes.iter().any(|write| {
                        let content = write.meaning.as_ref().map(|written| &written.content);
                        write.block == 0 && content != Some(&commit.content)
                    });
                    if !is_stable || may_change {
                        return Err(format!(
                            "a commit was reported that is not stable (superblock: {is_stable}, written: {may_change})"
                        ));
                    }
                }
            }
        }
        self.epoch(&mut disk, &meaning, &writes, rng)
    }

    fn epoch(
        &mut self,
        disk: &mut Disk,
        meaning: &Meaning,
        writes: &[Write],
        rng: &mut Rng,
    ) -> Result<(), Violation> {
        self.counts.epochs += 1;
        for masks in choose(self.choice, writes.len(), rng) {
            let mut undo = Vec::new();
            let mut shown = meaning.clone();
            for (write, mask) in writes.iter().zip(&masks).filter(|(_, mask)| **mask != 0) {
                let data = match mask {
                    0xff => write.data.clone(),
                    mask => write.data.torn(*mask, disk.get(write.block).map(|w| &**w)),
                };
                undo.push((write.block, disk.set(write.block, Some(data))));
                if write.block == 0 && mask & 1 != 0 {
                    shown = write.meaning.clone();
                }
            }
            self.judge(disk, &shown).map_err(|e| {
                let blocks: Vec<_> = writes.iter().map(|write| write.block).collect();
                format!(
                    "state {}: {e}\n  writes since the flush: {blocks:?}\n  sectors of each that reached the device: {masks:02x?}",
                    self.state
                )
            })?;
            if rng.one_in(self.keep_one_in.max(1)) && self.kept.len() < 16 {
                self.kept.push((disk.clone(), shown));
            }
            for (block, old) in undo.into_iter().rev() {
                disk.set(block, old);
            }
        }
        Ok(())
    }

    fn judge(&mut self, disk: &Disk, meaning: &Meaning) -> Result<(), Violation> {
        self.state += 1;
        self.counts.states += 1;
        if self.wanted == Some(self.state) {
            self.image = Some(disk.to_bytes());
        }
        if !self.seen.insert(disk.hash()) {
            return Ok(());
        }
        let Some(commit) = meaning else {
            return self.judge_unformatted(disk);
        };
        check(disk)?.expect(&commit.content)?;

        let bm = CachedBm::over(ReadOnly(disk), usize::MAX).map_err(|e| e.to_string())?;
        let md = Metadata::open(bm, PARAMS).map_err(|e| format!("open: {e}"))?;
        let found = (md.transaction_id(), md.nr_data_blocks(), md.time());
        let pool = &commit.model.pool;
        if found != (Ok(pool.transaction_id), Ok(pool.nr_data), pool.time) {
            return Err(format!("the library finds {found:?}"));
        }

        if self.nr_distinct().is_multiple_of(READ) {
            let mut world =
                World::open(disk.clone(), meaning.clone()).map_err(|e| e.to_string())?;
            world
                .compare()
                .map_err(|e| format!("the library finds {e}"))?;
            self.counts.reads += 1;
        }
        if self.nr_distinct().is_multiple_of(THIN_CHECK) {
            tools::check(&disk.to_bytes())?;
            self.counts.thin_checks += 1;
        }
        Ok(())
    }

    /// Without a superblock, the device is formatted again.
    fn judge_unformatted(&mut self, disk: &Disk) -> Result<(), Violation> {
        if disk.block(0).iter().any(|byte| *byte != 0) {
            return Err("half a superblock".into());
        }
        let world = World::open(disk.clone(), None).map_err(|e| format!("format: {e}"))?;
        check(&world.device().disk())?.expect(&world.content())
    }
}

/// Which parts of `n` writes reach the device.
fn choose(choice: Choice, n: usize, rng: &mut Rng) -> Vec<Masks> {
    let all = vec![0xff; n];
    let mut chosen = Vec::new();
    if n <= choice.exhaustive {
        for subset in 0..1u32 << n {
            chosen.push(
                (0..n)
                    .map(|i| if subset >> i & 1 == 1 { 0xff } else { 0 })
                    .collect(),
            );
        }
    } else {
        chosen.push(vec![0; n]);
        chosen.push(all.clone());
        // Where they are many, some of each kind do.
        let step = n.div_ceil(24);
        for i in (0..n).step_by(step).chain([n - 1]) {
            let range = |from: usize, to: usize| -> Masks {
                (0..n)
                    .map(|j| if (from..to).contains(&j) { 0xff } else { 0 })
                    .collect()
            };
            chosen.push(range(i, i + 1));
            chosen.push(range(0, i));
            chosen.push(range(i, n));
            let mut but_one = all.clone();
            but_one[i] = 0;
            chosen.push(but_one);
        }
    }
    if n > 0 {
        for _ in 0..choice.random {
            chosen.push(random_masks(n, rng));
        }
    }
    chosen
}

fn random_masks(n: usize, rng: &mut Rng) -> Masks {
    let of_eight = [1, 4, 4, 7][rng.within(0..4) as usize];
    let tears = !rng.one_in(4);
    (0..n)
        .map(|_| {
            if rng.within(0..8) >= of_eight {
                return 0;
            }
            match rng.within(0..5) {
                0 if tears => rng.any() as u8,
                1 if tears => (1u16 << rng.within(0..9)).wrapping_sub(1) as u8,
                2 if tears => 1 << rng.within(0..8),
                _ => 0xff,
            }
        })
        .collect()
}
