// SPDX-License-Identifier: GPL-2.0

//! A process that undoes what another one has left, as soon as that was killed.
//!
//! A device that is suspended stops whoever uses it, and cannot wait for the next run. So whoever suspends one has
//! a guard: this program again, which holds one end of a pipe, and sees when the other one is closed. Through the pipe, it can be
//! told of a device that must not be suspended for longer than some time.

use std::{
    io::{
        self,
        Read,
        Write, //
    },
    path::Path,
    process::{
        Child,
        Command,
        Stdio, //
    },
    sync::{
        atomic::AtomicBool,
        Arc, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

use devicemapper::Device;
use rustix::{
    event::{
        poll,
        PollFd,
        PollFlags,
        Timespec, //
    },
    io::Errno, //
};

use crate::{
    cut,
    dm::{
        Dm,
        Line, //
    },
    error::{
        Error,
        Result, //
    },
    home::Home,
    journal::Journal,
    memory,
    pool::Pool,
    quiet,
    signals,
    tell::tell, //
};

/// How long a guard tries to undo what is left. While a device may be suspended, it goes on.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it waits in between: twice as long each time, up to the longest.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The guard of a process; its work begins when this is dropped, or the process ends.
pub struct Guard(Child);

impl Guard {
    /// Starts the guard of the journals of this name, of this pool. [`Home::open`] was told the folders `home` and `run`.
    pub fn start(home: &Path, run: &Path, pool: &str, journal: &str) -> Result<Self> {
        let failed = || Error::io("a guard for what is suspended");
        // This program, even if there is another one in its place by now.
        let mut guard = Command::new("/proc/self/exe");
        for variable in cut::VARIABLES {
            guard.env_remove(variable);
        }
        let mut child = guard
            .args(["guard", pool, journal, "--home"])
            .arg(home)
            .arg("--run")
            .arg(run)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed())?;
        let mut ready = [0];
        match &mut child.stdout {
            Some(stdout) => stdout.read_exact(&mut ready).map_err(failed())?,
            None => return Err(failed()(io::ErrorKind::UnexpectedEof.into())),
        }
        Ok(Self(child))
    }

    /// Tells it to resume a device after so long, whatever becomes of this process; or not to any more.
    ///
    /// This process may wait in the kernel for what it writes. It cannot resume anything then, and if it is killed, its end of
    /// the pipe stays open.
    pub fn limit(&mut self, limit: Option<(Device, Duration)>) -> Result {
        let line = match limit {
            Some((device, time)) => format!("{device} {}\n", time.as_millis()),
            None => "\n".to_owned(),
        };
        match &mut self.0.stdin {
            Some(stdin) => stdin.write_all(line.as_bytes()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
        .map_err(|e| {
            // That is no output that nobody reads.
            Error::Io(
                "the guard for what is suspended".to_owned(),
                io::Error::other(e),
            )
        })
    }

    /// Whether it still watches.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

/// What a guard does.
pub fn watch(home: &Path, run: &Path, pool: &str, journal: &str) -> Result {
    // What ends the process that it watches, a terminal or whoever kills all of a group, must not end it.
    let _ = rustix::process::setsid();
    for signal in signals::STOP {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))
            .map_err(Error::io("signals"))?;
    }
    let dm = Arc::new(Dm::new()?);
    let pool = Pool::find(&dm, pool)?;
    let folders = [Home::open(run, &pool)?, Home::open(home, &pool)?];
    // What it works with may lie on a volume that is suspended when it is needed.
    memory::lock()?;
    let ready = io::stdout().write_all(b"\n");
    ready
        .and_then(|()| io::stdout().flush())
        .map_err(Error::io("standard output"))?;

    // From here on it must neither end nor wait for anybody before all is tried: its standard error is that of the process
    // that it watches, and may lie on what is suspended, or be a pipe that nobody reads.
    quiet::begin();
    if let Err(e) = wait(&dm) {
        tell(e);
    }
    // Devices are resumed first: the other folder may not be there before.
    for folder in folders {
        undo(&dm, &pool, &folder, journal);
    }
    quiet::end();
    Ok(())
}

/// Waits until the standard input ends. A device whose [limit](Guard::limit) is over meanwhile is resumed, with the table that
/// it has or that is loaded for it: whoever has suspended it loads none that must not be the device's, and looks whether it is
/// still suspended before and after that.
fn wait(dm: &Dm) -> Result {
    let input = io::stdin();
    let mut limit: Option<(Device, Instant)> = None;
    let mut resumed = None;
    let mut line = Vec::new();
    loop {
        let left = limit.map(|(_, end)| end.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(&input, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) => {
                limit = limit.and_then(|(device, _)| match dm.resume_number(device, None) {
                    Ok(()) => {
                        resumed = Some(device);
                        None
                    }
                    Err(e) => {
                        tell(e);
                        in_future(device, LONGEST_PAUSE)
                    }
                });
            }
            Ok(_) => {
                let mut buffer = [0; 64];
                let read = rustix::io::read(&input, &mut buffer);
                let len = read.map_err(|e| Error::io("standard input")(e.into()))?;
                if len == 0 {
                    return resumed.map_or(Ok(()), |device| clear(dm, device));
                }
                for byte in buffer.into_iter().take(len) {
                    match byte {
                        b'\n' => {
                            limit = parse_limit(&line);
                            line.clear();
                        }
                        byte => line.push(byte),
                    }
                }
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(Error::io("standard input")(e.into())),
        }
    }
}

/// Takes a table away that was loaded for a device after it was resumed: whoever has loaded it would have, and did not live to.
/// It must not become the device's when somebody resumes that, after it was suspended again for something else. A table of
/// somebody else leads to the same volume.
fn clear(dm: &Dm, device: Device) -> Result {
    let Some(name) = dm.name(device)? else {
        return Ok(());
    };
    match dm.info(&name)? {
        Some(info) if info.device == device && info.has_other_table => {}
        _ => return Ok(()),
    }
    match leads_to(&dm.table(&name)?) == leads_to(&dm.other_table(&name)?) {
        true => Ok(()),
        false => dm.clear(&name),
    }
}

/// The target of a table, and its pool and its volume if that is `thin`.
fn leads_to(table: &[Line]) -> Option<(&str, Vec<&str>)> {
    let line = table.first()?;
    let words = line.words.split_ascii_whitespace().take(2).collect();
    Some((&line.target, words))
}

fn parse_limit(line: &[u8]) -> Option<(Device, Instant)> {
    let (device, time) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    in_future(
        device.parse().ok()?,
        Duration::from_millis(time.parse().ok()?),
    )
}

fn in_future(device: Device, time: Duration) -> Option<(Device, Instant)> {
    Some((device, Instant::now().checked_add(time)?))
}

/// Undoes what one journal has, and nothing of others, which could have to be waited for: each that has suspended a device
/// has a guard of its own.
fn undo(dm: &Arc<Dm>, pool: &Pool, folder: &Home, journal: &str) {
    let begun = Instant::now();
    let mut pause = PAUSE;
    // It goes when nothing of it is left.
    while Journal::exists(folder, journal) {
        if let Err(e) = Journal::recover_one(dm, pool, folder, journal.to_owned()) {
            tell(e);
        }
        if begun.elapsed() >= PATIENCE && !Journal::may_suspend(folder, journal) {
            break;
        }
        thread::sleep(pause);
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}
