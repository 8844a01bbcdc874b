// SPDX-License-Identifier: GPL-2.0

//! A command that gets a stream as its input, and is given up if it hangs.

use std::{
    io::{
        self,
        ErrorKind,
        Write, //
    },
    process::{
        Child,
        ChildStdin,
        Command,
        ExitStatus,
        Stdio, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

use rustix::{
    event::{
        poll,
        PollFd,
        PollFlags,
        Timespec, //
    },
    io::ioctl_fionbio,
    process::{
        Pid,
        Signal, //
    },
};

use crate::{
    error::{
        Error,
        Result, //
    },
    family::Family,
    signals,
};

/// How long to wait for the end of what was killed.
const MORTAL: Duration = Duration::from_secs(10);

/// How often it is looked whether it is time to give up.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// A shell command that runs.
pub struct Program {
    command: String,
    child: Child,
    /// What it starts ends with it.
    family: Family,
    patience: Duration,
}

/// The input of a [`Program`]. Writing fails if nothing was taken for as long as its patience.
pub struct Input {
    pipe: ChildStdin,
    patience: Duration,
}

impl Program {
    /// Starts `command`, for which `patience` is how long it may take nothing, and how long it may run on after that.
    pub fn start(command: &str, patience: Duration) -> Result<(Self, Input)> {
        let mut shell = Command::new("/bin/sh");
        shell
            .arg("-c")
            .arg(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let family = Family::mark(&mut shell)?;
        let mut child = shell.spawn().map_err(Error::io(command))?;
        let pipe = child
            .stdin
            .take()
            .ok_or_else(|| Error::Command(format!("\"{command}\" has no input")))?;
        ioctl_fionbio(&pipe, true).map_err(|e| Error::Io(command.to_owned(), e.into()))?;
        let program = Self {
            command: command.to_owned(),
            child,
            family,
            patience,
        };
        Ok((program, Input { pipe, patience }))
    }

    /// Waits for its end, after its input was closed. `sent` is what came of writing to it.
    pub fn end<T>(mut self, sent: Result<T>) -> Result<T> {
        self.go_on()?;
        let kind = match &sent {
            Err(Error::Io(_, e)) => Some(e.kind()),
            _ => None,
        };
        if kind == Some(ErrorKind::TimedOut) {
            self.kill();
            return Err(self.failed(format!("took nothing for {:?}", self.patience)));
        }
        let status = self.wait()?;
        match sent {
            // It has not failed in its own eyes, but has not got all of it, either.
            Err(_) if kind == Some(ErrorKind::BrokenPipe) && status.success() => {
                Err(self.failed("did not take all of its input".to_owned()))
            }
            // That the pipe broke is a consequence.
            sent if status.success() || (sent.is_err() && kind != Some(ErrorKind::BrokenPipe)) => {
                sent
            }
            _ => Err(self.failed(status.to_string())),
        }
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let begun = Instant::now();
        loop {
            let status = self.child.try_wait().map_err(Error::io(&self.command))?;
            if let Some(status) = status {
                return Ok(status);
            }
            if begun.elapsed() >= self.patience {
                self.kill();
                return Err(self.failed(format!("did not end within {:?}", self.patience)));
            }
            self.go_on()?;
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Gives an error if a signal has asked to stop; it is handed on, as it may not have come from the terminal.
    fn go_on(&self) -> Result {
        signals::check().inspect_err(|_| self.family.signal(self.head(), Signal::TERM))
    }

    fn kill(&mut self) {
        self.family.kill(self.head());
        // What waits for a device that does not answer cannot be killed before it does.
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < MORTAL {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Nobody has waited for it yet, so its number is still its own.
    fn head(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn failed(&self, how: String) -> Error {
        Error::Command(format!("\"{}\": {how}", self.command))
    }
}

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let begun = Instant::now();
        loop {
            match self.pipe.write(bytes) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
            if begun.elapsed() >= self.patience {
                return Err(ErrorKind::TimedOut.into());
            }
            signals::check().map_err(|e| io::Error::other(e.to_string()))?;
            match poll(&mut [PollFd::new(&self.pipe, PollFlags::OUT)], Some(&PAUSE)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pipe.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(400);

    /// What comes of sending 1 MiB to a command.
    fn sent(command: &str) -> Result {
        let (program, mut input) = Program::start(command, PATIENCE)?;
        let sent = input.write_all(&[7; 1 << 20]).map_err(Error::io("sending"));
        drop(input);
        program.end(sent)
    }

    #[track_caller]
    fn fails(command: &str, how: &str) {
        let begun = Instant::now();
        match sent(command) {
            Err(Error::Command(why)) => assert!(why.contains(how), "{why}"),
            result => panic!("{command}: {result:?}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn all_of_it_is_taken() {
        let file = tempfile::NamedTempFile::new().unwrap();
        sent(&format!("cat >{}", file.path().display())).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), [7; 1 << 20]);
    }

    #[test]
    fn who_is_slow_is_not_given_up() {
        // It takes longer than the patience, but never pauses for so long.
        let begun = Instant::now();
        sent("for i in 1 2 3 4 5 6 7 8; do head -c 131072 >/dev/null; sleep 0.1; done").unwrap();
        assert!(begun.elapsed() > PATIENCE);
    }

    #[test]
    fn who_hangs_is_given_up() {
        fails("exec sleep 1000", "took nothing");
        fails("head -c 300000 >/dev/null; exec sleep 1000", "took nothing");
        fails("cat >/dev/null; exec sleep 1000", "did not end");
    }

    #[test]
    fn what_it_has_started_ends_with_it() {
        for start in [
            // Its child, also without the environment.
            "sleep 1000 & echo $! >PATH; wait",
            "env -i sleep 1000 & echo $! >PATH; wait",
            // That of one who is gone.
            "(sleep 1000 & echo $! >PATH); sleep 1000",
            // In a group of its own.
            "timeout 1000 sleep 1000 & echo $! >PATH; wait",
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            let path = file.path().display().to_string();
            fails(&start.replace("PATH", &path), "took nothing");
            let number = std::fs::read_to_string(file.path()).unwrap();
            let is_there = || {
                // Whoever ought to wait for it may not do so.
                std::fs::read_to_string(format!("/proc/{}/stat", number.trim_end()))
                    .is_ok_and(|stat| !stat.contains(") Z "))
            };
            let begun = Instant::now();
            while is_there() {
                assert!(begun.elapsed() < Duration::from_secs(10), "{start}");
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// Asks as ssh does.
    #[test]
    #[ignore = "the next one calls it, at a terminal"]
    fn asks_at_the_terminal() {
        let ask = "stty -echo </dev/tty && read -r answer </dev/tty && test \"$answer\" = secret";
        let command = format!("cat >/dev/null | ({ask}) || exit; exec cat >/dev/null");
        let (program, input) = Program::start(&command, Duration::from_secs(60)).unwrap();
        drop(input);
        program.end(Ok(())).unwrap();
    }

    #[test]
    fn a_password_can_be_asked_for() {
        let test = std::env::current_exe().unwrap();
        let words = "--ignored --exact program::tests::asks_at_the_terminal";
        for (answer, is_right) in [("secret\n", true), ("wrong\n", false)] {
            // It makes a terminal, and a session for that.
            let mut script = Command::new("script")
                .args(["-qec", &format!("{} {words}", test.display()), "/dev/null"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut keyboard = script.stdin.take().unwrap();
            keyboard.write_all(answer.as_bytes()).unwrap();
            let output = script.wait_with_output().unwrap();
            drop(keyboard);
            let told = String::from_utf8_lossy(&output.stdout);
            assert!(told.contains("1 passed") == is_right, "{told}");
            assert!(told.contains("1 failed") != is_right, "{told}");
        }
    }

    #[test]
    fn who_fails_has_failed() {
        fails("exit 3", "3");
        fails("cat >/dev/null; exit 3", "3");
        // If it does not want all of it, it has not got all of it.
        fails("head -c 1000 >/dev/null", "did not take all");
    }
}
