// SPDX-License-Identifier: GPL-2.0

//! What must not be done while this process has suspended a device, or has a lock that others wait for.
//!
//! A message may go to a file that lies on the device, so it is told when all devices are resumed. And nobody must stop the
//! process, as Ctrl-Z does: whoever uses the device would wait until it goes on, and so would lvm2's commands.

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
    /// How many devices are suspended, and locks held.
    holds: u32,
    /// What is to be told.
    messages: Vec<String>,
}

static STATE: Mutex<State> = Mutex::new(State {
    holds: 0,
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

/// A device is about to be suspended, or a lock to be taken.
pub fn begin() {
    let mut state = state();
    state.holds = state.holds.saturating_add(1);
    MAY_HALT.store(false, Ordering::SeqCst);
}

/// A device was resumed, or not suspended after all, or a lock given back.
pub fn end() {
    let mut state = state();
    state.holds = state.holds.saturating_sub(1);
    if state.holds > 0 {
        return;
    }
    MAY_HALT.store(true, Ordering::SeqCst);
    let messages = std::mem::take(&mut state.messages);
    drop(state);
    messages.iter().for_each(tell);
}

/// From [`begin`] to [`end`].
pub struct Quiet(());

impl Quiet {
    /// Begins it, until it is dropped.
    pub fn begin() -> Self {
        begin();
        Self(())
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        end();
    }
}

/// Takes a message if it must not be told now.
pub fn keeps(message: &str) -> bool {
    let mut state = state();
    let keeps = state.holds > 0;
    if keeps {
        state.messages.push(message.to_owned());
    }
    keeps
}
