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
    time::Duration,
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
    signals, //
};

/// How often a guard tries to undo what is left, and how long it waits in between.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(100);

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

    io::copy(&mut io::stdin().lock(), &mut io::sink()).map_err(Error::io("standard input"))?;
    // Devices are resumed first: the other folder may not be there before.
    for folder in folders {
        for _ in 0..TRIES {
            // The journal goes when nothing of it is left.
            if !Journal::exists(&folder, journal) {
                break;
            }
            Journal::recover(&dm, &pool, &folder)?;
            thread::sleep(PAUSE);
        }
    }
    Ok(())
}
