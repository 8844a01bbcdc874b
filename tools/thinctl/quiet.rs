// SPDX-License-Identifier: GPL-2.0

//! What must not be done while this process has suspended a device, or has a lock that others wait for.
//!
//! A message may go to a file that lies on the device, so it is told when all devices are resumed. And nobody must stop the
//! process, as Ctrl-Z does: whoever uses the device would wait until it goes on. So would lvm2's commands for a lock of theirs;
//! meanwhile messages are told only if that takes no waiting for whoever reads them.

use std::{
    io,
    sync::{
        atomic::{
            AtomicBool,
            Ordering, //
        },
        Arc,
        LazyLock,
        Mutex,
        MutexGuard,
        PoisonError, //
    },
};

use rustix::event::{
    poll,
    PollFd,
    PollFlags,
    Timespec, //
};
use signal_hook::consts::{
    SIGTSTP,
    SIGTTIN,
    SIGTTOU, //
};

use crate::{
    error::{
        Error,
        Result, //
    },
    tell::tell,
};

/// The signals that stop a process until it is told to go on. Programs that are started are stopped by them as ever.
const HALT: [i32; 3] = [SIGTSTP, SIGTTIN, SIGTTOU];

/// The longest message, in bytes, that a pipe takes at once if it takes anything: POSIX's least `PIPE_BUF`.
const AT_ONCE: usize = 512;

struct State {
    /// How many devices are suspended.
    suspended: u32,
    /// Whether some of them will not be resumed by this process.
    is_left: bool,
    /// How many locks are held.
    locks: u32,
    /// What is to be told.
    messages: Vec<String>,
}

impl State {
    fn update(&self) {
        MAY_HALT.store(self.suspended == 0 && self.locks == 0, Ordering::SeqCst);
    }
}

static STATE: Mutex<State> = Mutex::new(State {
    suspended: 0,
    is_left: false,
    locks: 0,
    messages: Vec::new(),
});

static MAY_HALT: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| Arc::new(AtomicBool::new(true)));

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// To be called once, before [`begin`].
pub fn watch() -> Result {
    for signal in HALT {
        signal_hook::flag::register_conditional_default(signal, MAY_HALT.clone())
            .map_err(Error::io("signals"))?;
    }
    Ok(())
}

/// A device is about to be suspended.
pub fn begin() {
    let mut state = state();
    state.suspended = state.suspended.saturating_add(1);
    state.update();
}

/// A device was resumed, or not suspended after all.
pub fn end() {
    let mut state = state();
    state.suspended = state.suspended.saturating_sub(1);
    state.update();
    tell_withheld(state);
}

/// Nothing is told until it is dropped. For whoever resumes what somebody else may have suspended: messages may go to that.
pub struct Hush(());

impl Hush {
    /// Begins.
    pub fn begin() -> Self {
        begin();
        Self(())
    }
}

impl Drop for Hush {
    fn drop(&mut self) {
        end();
    }
}

/// So many devices stay suspended, until another process resumes them: what is withheld is never told.
pub fn leave(devices: u32) {
    let mut state = state();
    state.is_left |= devices > 0;
}

/// For the end of the process, once all devices are resumed: tells what was withheld, whoever still counts them.
pub fn end_all() {
    let mut state = state();
    if !state.is_left {
        state.suspended = 0;
        tell_withheld(state);
    }
}

/// To be called when there is less that messages are withheld for. Those that must be still are withheld again.
fn tell_withheld(mut state: MutexGuard<'_, State>) {
    if state.suspended > 0 {
        return;
    }
    let messages = std::mem::take(&mut state.messages);
    drop(state);
    messages.iter().for_each(tell);
}

/// While there is one, nobody stops the process: it has a lock that others wait for.
pub struct Unhalted(());

impl Unhalted {
    /// To be made before the lock is taken.
    pub fn begin() -> Self {
        let mut state = state();
        state.locks = state.locks.saturating_add(1);
        state.update();
        Self(())
    }
}

impl Drop for Unhalted {
    fn drop(&mut self) {
        let mut state = state();
        state.locks = state.locks.saturating_sub(1);
        state.update();
        tell_withheld(state);
    }
}

/// Takes a message if it must not be told now.
pub fn keeps(message: &str) -> bool {
    let mut state = state();
    let is_in_turn = state.messages.is_empty();
    let keeps = state.suspended > 0
        || (state.locks > 0 && !(is_in_turn && message.len() < AT_ONCE && takes_messages()));
    // What is tried again and again fails for the same reason.
    if keeps && !state.messages.iter().any(|kept| kept == message) {
        state.messages.push(message.to_owned());
    }
    keeps
}

/// Whether standard error takes a message without waiting.
fn takes_messages() -> bool {
    let stderr = io::stderr();
    let mut asked = [PollFd::new(&stderr, PollFlags::OUT)];
    // A reader that is gone makes nobody wait, either.
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}
