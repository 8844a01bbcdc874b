// SPDX-License-Identifier: GPL-2.0

//! What must not be done while this process has suspended a device, or has a lock that others wait for.
//!
//! A message may go to a file that lies on the device, so it is told when all devices are resumed. And nobody must stop the
//! process, as Ctrl-Z does: whoever uses the device would wait until it goes on. So would lvm2's commands for a lock of theirs;
//! meanwhile messages are told only if that takes no waiting for whoever reads them.
//!
//! A device that cannot be resumed is left to others. A process that lives on looks at it until it runs again or is gone; one that
//! ends before tells what it has to tell where that needs no such device.

use std::{
    fs::{
        self,
        OpenOptions, //
    },
    io::{
        self,
        Write, //
    },
    os::unix::fs::FileTypeExt,
    path::Path,
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
    thread,
    time::Duration,
};

use devicemapper::Device;
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
    backing,
    error::{
        Error,
        Result, //
    },
    tell::{
        tell,
        write, //
    },
};

/// The signals that stop a process until it is told to go on. Programs that are started are stopped by them as ever.
const HALT: [i32; 3] = [SIGTSTP, SIGTTIN, SIGTTOU];

/// The longest message, in bytes, that a pipe takes at once if it takes anything: POSIX's least `PIPE_BUF`.
const AT_ONCE: usize = 512;

/// The longest line that the kernel's log takes, in bytes, and less.
const LONGEST_LINE: usize = 900;

/// How often to look whether what was left is resumed.
const LOOK: Duration = Duration::from_millis(200);

struct State {
    /// How many devices are suspended.
    suspended: u32,
    /// Those that this process could not resume: others may have.
    left: Vec<Device>,
    /// How many locks are held.
    locks: u32,
    /// What is to be told.
    messages: Vec<String>,
}

impl State {
    fn is_quiet(&self) -> bool {
        self.suspended > 0 || !self.left.is_empty()
    }

    fn update(&self) {
        MAY_HALT.store(!self.is_quiet() && self.locks == 0, Ordering::SeqCst);
    }

    /// Looks which of those that are left still are suspended.
    fn look(&mut self) {
        self.left.retain(|device| is_suspended(*device));
        self.update();
    }
}

static STATE: Mutex<State> = Mutex::new(State {
    suspended: 0,
    left: Vec::new(),
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

/// Whether a device is suspended, or may be.
pub fn any_suspended() -> bool {
    state().is_quiet()
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

/// This process could not resume these devices, so many of which [`begin`] has counted, and tries it no more. They count until
/// somebody else has resumed or removed them.
pub fn leave(devices: &[Device], counted: u32) {
    let mut state = state();
    state.suspended = state.suspended.saturating_sub(counted);
    state.left.extend(devices);
    drop(state);
    // Where there can be no thread, the next message looks.
    let _ = thread::Builder::new().spawn(|| {
        while !look() {
            thread::sleep(LOOK);
        }
    });
}

/// Looks whether all that was left runs again, and tells what was withheld for it.
pub fn look() -> bool {
    let mut state = state();
    state.look();
    let is_over = state.left.is_empty();
    tell_withheld(state);
    is_over
}

/// The end of the process: what was withheld is told, whoever still counts devices. If some stay suspended, each message goes
/// where it surely does not wait for them: to standard error, or else to the kernel's log. `all_known` is false if devices may
/// be suspended that nobody has [left](leave).
pub fn end_all(all_known: bool) {
    let mut state = state();
    state.suspended = 0;
    state.look();
    let messages = std::mem::take(&mut state.messages);
    let left = state.left.clone();
    drop(state);
    for message in messages {
        if all_known && left.is_empty() {
            tell(message);
        } else if is_elsewhere(&message, all_known.then_some(&left)) {
            write(&message);
        } else {
            log(&message);
        }
    }
}

/// Whether standard error takes a message without these devices, or without whichever.
fn is_elsewhere(message: &str, devices: Option<&Vec<Device>>) -> bool {
    let stderr = Path::new("/proc/self/fd/2");
    match fs::metadata(stderr) {
        // Whoever writes to a file waits for its file system, which is frozen with its device.
        Ok(metadata) if metadata.is_file() => devices.is_some_and(|devices| {
            let lies_on = |device: &Device| backing::lies_on(stderr, *device);
            devices
                .iter()
                .map(lies_on)
                .all(|lies| matches!(lies, Ok(false)))
        }),
        Ok(metadata) if metadata.file_type().is_block_device() => false,
        Ok(_) => message.len() < AT_ONCE && takes_messages(),
        Err(_) => false,
    }
}

/// Writes a message to the kernel's log, as much of it as is one line there.
fn log(message: &str) {
    let mut text = message.replace('\n', " ");
    while text.len() > LONGEST_LINE {
        text.pop();
    }
    // There is nobody else to tell.
    let _ = OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut log| log.write_all(format!("<4>thinctl: {text}\n").as_bytes()));
}

/// Whether there is a device of this number, and it is suspended.
fn is_suspended(device: Device) -> bool {
    let file = format!("/sys/dev/block/{device}/dm/suspended");
    match fs::read_to_string(file) {
        Ok(text) => text.trim_end() == "1",
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    }
}

/// To be called when there is less that messages are withheld for. Those that must be still are withheld again.
fn tell_withheld(mut state: MutexGuard<'_, State>) {
    if state.is_quiet() {
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
    state.look();
    let is_in_turn = state.messages.is_empty();
    let keeps = state.is_quiet()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_counts_until_it_is_gone() {
        // There is no such device.
        let gone = Device { major: 0, minor: 0 };
        begin();
        begin();
        assert!(keeps("first"));
        assert!(keeps("first"));
        let times = state().messages.iter().filter(|m| *m == "first").count();
        assert_eq!(times, 1);
        leave(&[gone], 1);
        assert!(keeps("second"));
        assert!(!MAY_HALT.load(Ordering::SeqCst));
        end();
        assert!(look());
        assert!(!keeps("third"));
        assert!(MAY_HALT.load(Ordering::SeqCst));
    }
}
