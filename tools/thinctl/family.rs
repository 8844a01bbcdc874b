// SPDX-License-Identifier: GPL-2.0

//! A command, and all that it has started.
//!
//! It stays in the process group of this process, so that it can ask for a password at the terminal, and gets ^C and ^Z
//! from there. So it takes something else to tell what belongs to it: a variable of the environment, which whoever is
//! started inherits, also if those who started it are gone; and whose child it is, as some, such as sudo, clear the
//! environment. Who has begun a session of its own is left alone: the guard of a thinctl, for instance, has to undo
//! what that leaves.

use std::{
    collections::BTreeSet,
    fs,
    process::Command, //
};

use rustix::process::{
    getpid,
    kill_process,
    Pid,
    Signal, //
};

use crate::{
    error::Result,
    state, //
};

/// The variable of the environment.
const VARIABLE: &str = "THINCTL_COMMAND";

/// How often it is looked for processes that were started meanwhile.
const LOOKS: u32 = 100;

/// How all that belongs to a command is known.
pub struct Family {
    /// As it is in the environment.
    mark: String,
}

/// What the kernel tells of a process.
struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    is_dead: bool,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Its name may contain anything.
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut words = rest.split(' ');
        let state = words.next()?;
        let parent = words.next()?.parse().ok()?;
        let _group = words.next()?;
        Some(Self {
            pid,
            parent,
            session: words.next()?.parse().ok()?,
            is_dead: matches!(state, "Z" | "X"),
        })
    }

    fn has(&self, mark: &str) -> bool {
        fs::read(format!("/proc/{}/environ", self.pid)).is_ok_and(|environment| {
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == mark.as_bytes())
        })
    }
}

impl Family {
    /// Marks a command that is to be started.
    pub fn mark(command: &mut Command) -> Result<Self> {
        let value = state::random_hex(16)?;
        command.env(VARIABLE, &value);
        Ok(Self {
            mark: format!("{VARIABLE}={value}"),
        })
    }

    /// Sends a signal to all of it. `head` is the command, which nobody has waited for yet, so that its number is its own.
    pub fn signal(&self, head: Pid, signal: Signal) {
        for pid in self.members(head) {
            send(pid, signal);
        }
    }

    /// Kills all of it.
    pub fn kill(&self, head: Pid) {
        // Who is stopped starts nobody else.
        let mut stopped = BTreeSet::new();
        for _ in 0..LOOKS {
            let all = self.members(head);
            if all.is_subset(&stopped) {
                break;
            }
            for &pid in all.difference(&stopped) {
                send(pid, Signal::STOP);
            }
            stopped = all;
        }
        self.signal(head, Signal::KILL);
    }

    fn members(&self, head: Pid) -> BTreeSet<i32> {
        let head = head.as_raw_nonzero().get();
        // That of processes which the kernel has started is 0, which `getsid` has no value for.
        let session = Process::read(getpid().as_raw_nonzero().get()).map_or(0, |this| this.session);
        let mut all: Vec<_> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(Process::read)
            .filter(|process| process.session == session && !process.is_dead)
            .collect();
        let mut found = BTreeSet::from([head]);
        loop {
            let before = found.len();
            all.retain(|process| {
                let belongs = found.contains(&process.parent) || process.has(&self.mark);
                if belongs {
                    found.insert(process.pid);
                }
                !belongs
            });
            if found.len() == before {
                return found;
            }
        }
    }
}

fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // If it has ended by now, that is as good.
        let _ = kill_process(pid, signal);
    }
}
