// SPDX-License-Identifier: GPL-2.0

//! Signals that ask to stop.
//!
//! A thread waits for them. It sets a flag that all long work looks at, so that the work ends by itself and undoes
//! what must not stay. If it does not, because it waits in a system call, the thread undoes it and ends the process.

use std::{
    fs,
    io,
    sync::{
        atomic::{
            AtomicI32,
            Ordering, //
        },
        Arc,
        Mutex,
        PoisonError, //
    },
    thread,
    time::Duration, //
};

use signal_hook::{
    consts::{
        SIGHUP,
        SIGINT,
        SIGQUIT,
        SIGTERM, //
    },
    iterator::Signals,
};

use crate::{
    error::{
        Error,
        Result, //
    },
    journal::Journal,
    quiet, //
};

/// The signals that ask to stop.
pub const STOP: [i32; 4] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];

/// The signal that came, or 0. Nothing else depends on the order in which it is seen.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// What is to be undone: the suspended devices of each session, and all else of it.
static JOURNALS: Mutex<Vec<[Arc<Journal>; 2]>> = Mutex::new(Vec::new());

/// How long work may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(3);

/// Begins to watch for signals.
pub fn watch() -> Result {
    quiet::watch()?;
    let ignored = ignored().map_err(Error::io("signals"))?;
    let heeded = STOP.into_iter().filter(|signal| !ignored.contains(signal));
    let mut signals = Signals::new(heeded).map_err(Error::io("signals"))?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            SIGNAL.store(signal, Ordering::Relaxed);
            thread::sleep(PATIENCE);
            let sessions = std::mem::take(&mut *journals());
            // What is told of one device must not keep the next one waiting.
            quiet::begin();
            // Whatever keeps the rest waiting, nobody else shall wait for a device meanwhile.
            let mut are_resumed = true;
            for [suspended, _] in sessions.iter().rev() {
                are_resumed &= suspended.undo_at_exit();
            }
            // All else is the guard's if one stays suspended: what it is noted in may lie on that.
            if are_resumed && quiet::look() {
                for [_, rest] in sessions.iter().rev() {
                    rest.undo_at_exit();
                }
            }
            // It may wait for whoever reads the messages, or for a device, so it comes last.
            quiet::end_all(are_resumed);
            std::process::exit(i32::from(Error::Interrupted(signal).exit_code()));
        }
    });
    Ok(())
}

/// Those that whoever has called the program wants it to ignore, as nohup does.
fn ignored() -> io::Result<Vec<i32>> {
    Ok(ignored_in(&fs::read_to_string("/proc/self/status")?))
}

/// As proc(5) has it: a bit for each signal, from the first one on, in hexadecimal digits.
fn ignored_in(status: &str) -> Vec<i32> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let signals = (1..=64).zip(0u32..64);
    signals
        .filter(|(_, bit)| (mask >> bit) & 1 == 1)
        .map(|(signal, _)| signal)
        .collect()
}

/// Gives an error if a signal has asked to stop.
pub fn check() -> Result {
    match SIGNAL.load(Ordering::Relaxed) {
        0 => Ok(()),
        signal => Err(Error::Interrupted(signal)),
    }
}

/// Sleeps, but not longer than until a signal asks to stop.
pub fn sleep(time: Duration) -> Result {
    let begun = std::time::Instant::now();
    loop {
        check()?;
        let left = time.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(Duration::from_millis(100)));
    }
}

/// Has the journals of a session undone if the process must end at once: that of suspended devices, and the one of all else.
/// The suspended devices of all sessions come first, and later sessions before earlier ones.
pub fn undo_on_signal(suspended: Arc<Journal>, rest: Arc<Journal>) {
    journals().push([suspended, rest]);
}

/// The session has undone them.
pub fn undone(suspended: &Arc<Journal>) {
    journals().retain(|[other, _]| !Arc::ptr_eq(other, suspended));
}

fn journals() -> std::sync::MutexGuard<'static, Vec<[Arc<Journal>; 2]>> {
    JOURNALS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_stays_ignored() {
        let status =
            "SigBlk:\t0000000000000000\nSigIgn:\t8000000000001001\nSigCgt:\tffffffffffffffff\n";
        assert_eq!(ignored_in(status), [SIGHUP, 13, 64]);
        assert_eq!(ignored_in(""), [0; 0]);
    }
}
