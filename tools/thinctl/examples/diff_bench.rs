// SPDX-License-Identifier: GPL-2.0

//! What reading metadata takes, beside thin-provisioning-tools.
//!
//! usage: diff_bench <folder> [<mappings> [<percent>]]
//!
//! Makes images in the folder of a volume with so many mappings, 8 Mi unless told, and a snapshot of it; so many percent
//! of the volume's mappings are others since, in one place or at random. An image that is there is used again. Then it
//! runs `thin_delta` and `diff`, and `thin_ls` and `usage`, in turns, each in a process of its own that reads the device
//! directly, and prints the shortest of five times in milliseconds.

use std::{
    collections::BTreeSet,
    fs::File,
    path::Path,
    process::{
        Command,
        ExitCode,
        Stdio, //
    },
    time::{
        Duration,
        Instant, //
    },
};

use persistent_data::{
    direct::DirectBm,
    file::FileBm, //
};
use thin_metadata::{
    DeviceId,
    Metadata,
    OpenParams,
    View, //
};
use thinctl::{
    diff::{
        diff,
        Options,
        Text, //
    },
    usage::usage,
};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const VOLUME: u64 = 1;
const SNAPSHOT: u64 = 2;

/// How many mappings are inserted at once.
const BATCH: usize = 4096;

const REPEATS: usize = 5;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        // How it calls itself.
        ["--task", name, image] => task(name, image),
        [folder] => bench(folder, 8 << 20, 1),
        [folder, mappings] => number(mappings).and_then(|n| bench(folder, n, 1)),
        [folder, mappings, percent] => {
            number(mappings).and_then(|n| bench(folder, n, number(percent)?))
        }
        _ => Err("usage: diff_bench <folder> [<mappings> [<percent>]]".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> Result<u64> {
    Ok(text.parse()?)
}

fn bench(folder: &str, mappings: u64, percent: u64) -> Result {
    println!("{mappings} mappings, {percent} % changed");
    println!(
        "{:<10} {:<10} {:<8} {:>8} {:>8} {:>6} {:>9}",
        "changes", "beside", "thinctl", "tools", "thinctl", "ratio", "memory"
    );
    for places in ["one-place", "random"] {
        let image = format!("{folder}/diff-{mappings}-{percent}-{places}");
        if !Path::new(&image).exists() {
            build(&image, mappings, mappings / 100 * percent, places)?;
        }
        let delta = ["--snap1", "1", "--snap2", "2", &image];
        let ls = ["--format", "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS", &image];
        for (tool, args, task) in [
            ("thin_delta", &delta[..], "diff"),
            ("thin_delta", &delta[..], "same"),
            ("thin_ls", &ls[..], "usage"),
        ] {
            let mut theirs = Command::new(tool);
            theirs.args(args);
            let mut ours = Command::new(std::env::current_exe()?);
            ours.args(["--task", task, &image]);
            let mut best = [Duration::MAX; 2];
            let mut memory = String::new();
            for _ in 0..REPEATS {
                for (command, best) in [&mut theirs, &mut ours].into_iter().zip(&mut best) {
                    let begin = Instant::now();
                    let output = command.stdout(Stdio::null()).output()?;
                    *best = begin.elapsed().min(*best);
                    if !output.status.success() {
                        return Err(format!("{command:?}: {output:?}").into());
                    }
                    memory = String::from_utf8(output.stderr)?;
                }
            }
            let [theirs, ours] = best.map(|time| time.as_secs_f64() * 1000.0);
            println!(
                "{places:<10} {tool:<10} {task:<8} {theirs:>8.1} {ours:>8.1} {:>6.1} {:>9}",
                theirs / ours,
                memory.trim()
            );
        }
    }
    Ok(())
}

/// Prints what is found to standard output, and the most memory that was in use to standard error.
fn task(task: &str, image: &str) -> Result {
    let bm = DirectBm::open(image)?;
    let view = View::new(&bm)?;
    let (left, right) = (DeviceId::try_from(VOLUME)?, DeviceId::try_from(SNAPSHOT)?);
    let mut out = std::io::BufWriter::new(std::io::stdout());
    match task {
        "usage" => {
            let nr_data_blocks = view.superblock().data_sm_root()?.nr_blocks.get();
            usage(&view, nr_data_blocks)?.write_text(&mut out)?;
        }
        task => {
            let same = task == "same";
            diff(&view, left, right, Options { same }, &mut Text(&mut out))?;
        }
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    eprintln!("{}", peak.unwrap_or_default().trim());
    Ok(())
}

fn build(image: &str, mappings: u64, changes: u64, places: &str) -> Result {
    let part = format!("{image}.part");
    let bm = FileBm::create(&part, mappings / 64 + 4096)?;
    let params = OpenParams {
        data_block_size: 128,
        format: true,
        read_only: false,
    };
    let mut md = Metadata::open(bm, params)?;
    md.resize_data(mappings + changes)?;
    let (volume, snapshot) = (DeviceId::try_from(VOLUME)?, DeviceId::try_from(SNAPSHOT)?);
    md.create_thin(volume)?;
    write(&mut md, volume, &(0..mappings).collect::<Vec<_>>())?;
    md.create_snap(snapshot, volume)?;
    let changed: Vec<u64> = match places {
        "one-place" => (mappings / 3..mappings / 3 + changes).collect(),
        _ => random(mappings, changes).into_iter().collect(),
    };
    write(&mut md, volume, &changed)?;
    md.close(|| Ok(()))?;
    drop(md);
    File::open(&part)?.sync_all()?;
    Ok(std::fs::rename(part, image)?)
}

/// Some numbers below `end`, the same every time.
fn random(end: u64, n: u64) -> BTreeSet<u64> {
    let mut numbers = BTreeSet::new();
    let mut x = 88_172_645_463_325_252u64;
    while (numbers.len() as u64) < n {
        // xorshift64
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        numbers.insert(x % end);
    }
    numbers
}

/// Maps virtual blocks to new data blocks.
fn write(md: &mut Metadata<FileBm>, id: DeviceId, blocks: &[u64]) -> thin_metadata::Result {
    let thin = md.open_thin(id)?;
    for batch in blocks.chunks(BATCH) {
        let mut data: Vec<u64> = Vec::new();
        while data.len() < batch.len() {
            let n = (batch.len() - data.len()) as u32;
            md.alloc_data_blocks(n, &mut |_| true, &mut |run| data.extend(run))?;
        }
        let entries: Vec<_> = batch.iter().copied().zip(data).collect();
        md.insert_blocks(&thin, &entries, &mut |_| ())?;
    }
    md.close_thin(&thin);
    md.commit()
}
