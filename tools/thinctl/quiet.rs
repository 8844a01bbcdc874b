// SPDX-License-Identifier: GPL-2.0

//! What must not be done while this process has suspended a device, or has a lock that others wait for.
//!
//! A message may go to a file that lies on the device, so it is told when all devices are resumed. And nobody must stop the
//! process, as Ctrl-Z does: whoever uses the device would wait until it goes on. So would lvm2's commands for a lock of theirs,
//! but messages are told then.

use std::sync::{
    atomic::{
        AtomicBool,
        Ordering, //
    },
    Arc,
    LazyLock,
    Mutex,
    MutexGuard,
    PoisonError, //
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

#[derive(Default)]
struct State {
    /// How many devices are suspended.
    suspended: u32,
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
    if state.suspended > 0 {
        return;
    }
    let messages = std::mem::take(&mut state.messages);
    drop(state);
    messages.iter().for_each(tell);
}

/// For the end of the process, once all devices are resumed: tells what was withheld, whoever still counts them.
pub fn end_all() {
    let mut state = state();
    state.suspended = 1;
    drop(state);
    end();
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
    }
}

/// Takes a message if it must not be told now.
pub fn keeps(message: &str) -> bool {
    let mut state = state();
    let keeps = state.suspended > 0;
    if keeps {
        state.messages.push(message.to_owned());
    }
    keeps
}
