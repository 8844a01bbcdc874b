// SPDX-License-Identifier: GPL-2.0

//! How far it is, on a terminal.

use std::io::{
    self,
    Write, //
};

use indicatif::{
    ProgressBar,
    ProgressDrawTarget,
    ProgressStyle, //
};

/// How often it is shown at most, each second.
const HERTZ: u8 = 5;

const WITH_TOTAL: &str =
    "{msg} {bytes} of {total_bytes} [{bar:20}] {percent} %, {binary_bytes_per_sec}, {eta} left";
const WITHOUT_TOTAL: &str = "{msg} {bytes}, {binary_bytes_per_sec}, {elapsed}";

/// Shows how many bytes are done, how fast it goes and how long it takes: on standard error, if that is a terminal.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Begins with what is done, and how many bytes it is about if that is known.
    pub fn new(what: &str, total: Option<u64>, quiet: bool) -> Self {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            // It hides itself if that is no terminal.
            ProgressDrawTarget::stderr_with_hz(HERTZ)
        };
        Self::on(target, what, total)
    }

    fn on(target: ProgressDrawTarget, what: &str, total: Option<u64>) -> Self {
        let template = match total {
            Some(_) => WITH_TOTAL,
            None => WITHOUT_TOTAL,
        };
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bar = ProgressBar::with_draw_target(total, target).with_style(style);
        bar.set_message(what.to_owned());
        Self { bar }
    }

    /// So many bytes were done before: they count, but not for the rate.
    pub fn resume(&self, bytes: u64) {
        self.bar.set_position(bytes);
        // It must have been seen before it can be left out.
        self.bar.tick();
        self.bar.reset_eta();
    }

    /// So many bytes more are done.
    pub fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// What it is about is another number of bytes.
    pub fn set_total(&self, bytes: u64) {
        self.bar.set_length(bytes);
    }

    /// Shows something above, for instance a warning; without a terminal, it goes to standard error as it is.
    pub fn say(&self, what: &str) {
        // That nobody can read it is no reason to stop.
        self.bar
            .suspend(|| io::stderr().write_all(format!("{what}\n").as_bytes()).ok());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use indicatif::{
        InMemoryTerm,
        ProgressDrawTarget, //
    };

    use super::Progress;

    fn terminal() -> (InMemoryTerm, ProgressDrawTarget) {
        let terminal = InMemoryTerm::new(10, 120);
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        (terminal, target)
    }

    #[test]
    fn a_terminal_shows_how_far_it_is() {
        let (terminal, target) = terminal();
        let progress = Progress::on(target, "backing up", Some(20 << 20));
        progress.resume(5 << 20);
        progress.add(5 << 20);
        progress.bar.tick();
        let shown = terminal.contents();
        assert!(
            shown.starts_with("backing up 10.00 MiB of 20.00 MiB [==========>"),
            "{shown}"
        );
        assert!(
            shown.contains("50 %") && shown.contains("iB/s") && shown.ends_with("left"),
            "{shown}"
        );
        progress.set_total(40 << 20);
        progress.bar.tick();
        let shown = terminal.contents();
        assert!(shown.contains("25 %"), "{shown}");
        drop(progress);
        assert_eq!(terminal.contents(), "");
    }

    #[test]
    fn what_was_done_before_is_not_fast() {
        let (terminal, target) = terminal();
        let progress = Progress::on(target, "sending", Some(2 << 40));
        progress.resume(1 << 40);
        std::thread::sleep(std::time::Duration::from_millis(200));
        progress.add(1 << 20);
        progress.bar.tick();
        let shown = terminal.contents();
        assert!(
            shown.contains(" MiB/s") || shown.contains(" KiB/s"),
            "{shown}"
        );
    }

    #[test]
    fn the_total_need_not_be_known() {
        let (terminal, target) = terminal();
        let progress = Progress::on(target, "receiving", None);
        progress.add(3 << 20);
        progress.bar.tick();
        let shown = terminal.contents();
        assert!(shown.starts_with("receiving 3.00 MiB, "), "{shown}");
    }

    /// The tests have no terminal, and are not asked to be quiet.
    #[test]
    fn it_is_quiet() {
        assert!(Progress::new("x", Some(1), true).bar.is_hidden());
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        assert_eq!(
            Progress::new("x", Some(1), false).bar.is_hidden(),
            !terminal
        );
    }
}
