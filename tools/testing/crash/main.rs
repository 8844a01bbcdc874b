// SPDX-License-Identifier: GPL-2.0

//! `dm-thin-crash`: losses of power and faults for the metadata of pools, for as long as one likes.

use std::{
    collections::HashSet,
    process::ExitCode,
    sync::{
        atomic::{
            AtomicBool,
            AtomicU64,
            Ordering, //
        },
        Mutex, //
    },
    time::{
        Duration,
        Instant, //
    },
};

use dm_thin_crash::{
    caught::caught,
    check::check,
    faults,
    replay::Judge,
    report::Counts,
    world::Violation, //
};

const USAGE: &str =
    "usage: dm-thin-crash [--seeds A..B] [--states N] [--faults] [--jobs N] [--report FILE]
       dm-thin-crash --replay SEED[:STATE] [--faults]
       dm-thin-crash --check IMAGE

  --seeds A..B     play these seeds (0..100, or as many as --states takes)
  --states N       go on until there were N distinct states
  --faults         failing I/O and memory instead of losses of power
  --jobs N         with so many threads (2)
  --report FILE    write figures there, as JSON
  --replay SEED    play one seed; with :STATE write the image of this state to a file
  --check IMAGE    check an image as the states are";

#[derive(Clone, Default)]
struct Options {
    first: u64,
    end: Option<u64>,
    states: u64,
    with_faults: bool,
    jobs: u64,
    report: Option<String>,
    replay: Option<(u64, Option<u64>)>,
    check: Option<String>,
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        jobs: 2,
        ..Options::default()
    };
    fn number(text: &str) -> Result<u64, String> {
        text.parse().map_err(|_| format!("{text}: not a number"))
    }
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} takes a value"));
        match arg.as_str() {
            "--seeds" => {
                let value = value()?;
                let (first, end) = value.split_once("..").ok_or("seeds are A..B")?;
                options.first = number(first)?;
                options.end = Some(number(end)?);
            }
            "--states" => options.states = number(&value()?)?,
            "--jobs" => options.jobs = number(&value()?)?.max(1),
            "--report" => options.report = Some(value()?),
            "--check" => options.check = Some(value()?),
            "--faults" => options.with_faults = true,
            "--replay" => {
                let value = value()?;
                options.replay = Some(match value.split_once(':') {
                    Some((seed, state)) => (number(seed)?, Some(number(state)?)),
                    None => (number(&value)?, None),
                });
            }
            _ => return Err(USAGE.into()),
        }
    }
    Ok(options)
}

/// What all threads share.
struct Shared {
    options: Options,
    next: AtomicU64,
    is_over: AtomicBool,
    counts: Mutex<(Counts, HashSet<u64>)>,
    failures: Mutex<Vec<(u64, Violation)>>,
}

fn new_judge(options: &Options) -> Judge {
    match options.with_faults {
        true => faults::judge(),
        false => Judge::default(),
    }
}

/// Plays a seed.
fn run_seed(options: &Options, seed: u64, judge: &mut Judge) -> Result<(), Violation> {
    caught(|| match options.with_faults {
        true => faults::run_seed(seed, judge).map(drop),
        false => judge.run(seed),
    })
}

/// Plays seeds until there are no more to play.
fn work(shared: &Shared) {
    while !shared.is_over.load(Ordering::Relaxed) {
        let seed = shared.next.fetch_add(1, Ordering::Relaxed);
        if shared.options.end.is_some_and(|end| seed >= end) {
            break;
        }
        let mut judge = new_judge(&shared.options);
        let result = run_seed(&shared.options, seed, &mut judge);
        let state = judge.state();
        let mut sum = shared.counts.lock().expect("no panics here");
        sum.0.add(&judge.counts);
        sum.1.extend(judge.into_seen());
        let enough = shared.options.states > 0 && sum.1.len() as u64 >= shared.options.states;
        drop(sum);
        if let Err(e) = result {
            let faults = if shared.options.with_faults {
                " --faults"
            } else {
                ""
            };
            eprintln!("seed {seed}: {e}\n  replay: dm-thin-crash --replay {seed}:{state}{faults}");
            shared
                .failures
                .lock()
                .expect("no panics here")
                .push((seed, e));
        }
        if enough {
            shared.is_over.store(true, Ordering::Relaxed);
        }
    }
}

/// Tells how far it is, every ten seconds.
fn watch(shared: &Shared, start: Instant, is_done: &AtomicBool) {
    let mut told = 0;
    while !is_done.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
        let seconds = start.elapsed().as_secs();
        if seconds / 10 == told {
            continue;
        }
        told = seconds / 10;
        let (counts, distinct) = {
            let sum = shared.counts.lock().expect("no panics here");
            (sum.0, sum.1.len() as u64)
        };
        let options = &shared.options;
        let next = shared.next.load(Ordering::Relaxed);
        let (done, all) = match (options.states, options.end) {
            (0, Some(end)) => (counts.runs.max(1), end - options.first),
            (states, _) => (distinct.max(1), states),
        };
        let left = all.saturating_sub(done) * seconds / done;
        eprintln!(
            "{seconds} s: seed {next}, {} states, {distinct} distinct, {} faults, {} states/s, about {left} s left",
            counts.states,
            counts.io_faults + counts.memory_faults,
            counts.states / seconds
        );
    }
}

fn report(shared: &Shared, seconds: f64) -> String {
    let sum = shared.counts.lock().expect("no panics here");
    let failures = shared.failures.lock().expect("no panics here");
    let mut fields: Vec<String> = vec![
        format!(
            "\"name\": \"{}\"",
            if shared.options.with_faults {
                "faults"
            } else {
                "crash"
            }
        ),
        format!("\"first_seed\": {}", shared.options.first),
        format!("\"seconds\": {seconds:.1}"),
        format!("\"distinct_states\": {}", sum.1.len()),
        format!(
            "\"failed_seeds\": {:?}",
            failures.iter().map(|(seed, _)| seed).collect::<Vec<_>>()
        ),
    ];
    for (name, count) in sum.0.fields() {
        fields.push(format!("\"{name}\": {count}"));
    }
    format!("{{{}}}", fields.join(", "))
}

fn replay(options: &Options, seed: u64, state: Option<u64>) -> Result<(), Violation> {
    let mut judge = new_judge(options);
    if let Some(state) = state {
        judge.want(state);
    }
    let result = run_seed(options, seed, &mut judge);
    if let (Some(image), Some(state)) = (judge.image.take(), state) {
        let name = format!("crash-{seed}-{state}.img");
        std::fs::write(&name, image).map_err(|e| format!("{name}: {e}"))?;
        println!("state {state} is in {name}");
    }
    println!(
        "{:?}, {} distinct states",
        judge.counts,
        judge.nr_distinct()
    );
    result
}

fn run(options: Options) -> Result<bool, String> {
    if let Some(path) = &options.check {
        let image = std::fs::read(path).map_err(|e| format!("{path}: {e}"))?;
        check(image.as_slice())?;
        return Ok(true);
    }
    if let Some((seed, state)) = options.replay {
        replay(&options, seed, state)?;
        return Ok(true);
    }

    let start = Instant::now();
    let end = options.end.or((options.states == 0).then_some(100));
    let shared = Shared {
        next: AtomicU64::new(options.first),
        options: Options { end, ..options },
        is_over: AtomicBool::new(false),
        counts: Mutex::default(),
        failures: Mutex::default(),
    };
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| watch(&shared, start, &is_done));
        let workers: Vec<_> = (0..shared.options.jobs)
            .map(|_| scope.spawn(|| work(&shared)))
            .collect();
        for worker in workers {
            worker.join().expect("panics are caught");
        }
        is_done.store(true, Ordering::Relaxed);
    });

    let report = report(&shared, start.elapsed().as_secs_f64());
    if let Some(path) = &shared.options.report {
        std::fs::write(path, format!("{report}\n")).map_err(|e| format!("{path}: {e}"))?;
    }
    println!("{report}");
    let failed = shared.failures.lock().expect("no panics here").len() as u64;
    let runs = shared.next.load(Ordering::Relaxed);
    let runs = runs.min(shared.options.end.unwrap_or(u64::MAX)) - shared.options.first;
    let name = if shared.options.with_faults {
        "faults"
    } else {
        "crash"
    };
    println!("{name}: {} passed, {failed} failed", runs - failed);
    Ok(failed == 0)
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(run) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
