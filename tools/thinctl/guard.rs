// SPDX-License-Identifier: GPL-2.0

//! A process that undoes what another one has left, as soon as that was killed.
//!
//! A device that is suspended stops whoever uses it, and cannot wait for the next run. So whoever suspends one has
//! a guard: this program again, which holds one end of a pipe, and sees when the other one is closed.

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

use crate::{
    cut,
    dm::Dm,
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
    if let Err(e) = io::copy(&mut io::stdin().lock(), &mut io::sink()) {
        tell(Error::io("standard input")(e));
    }
    // Devices are resumed first: the other folder may not be there before.
    for folder in folders {
        undo(&dm, &pool, &folder, journal);
    }
    quiet::end();
    Ok(())
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
