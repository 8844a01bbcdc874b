// SPDX-License-Identifier: GPL-2.0

//! Manual pages.

use std::{
    fs,
    io,
    path::Path, //
};

use clap::Command;
use clap_mangen::{
    roff::{
        bold,
        roman,
        Roff, //
    },
    Man, //
};

/// Writes the page of a command, and those of the commands that it has, into a folder.
pub fn generate_to(command: Command, folder: &Path) -> io::Result<()> {
    // There is nothing to tell of the help for help.
    let mut command = command.disable_help_subcommand(true);
    command.build();
    generate(&command, folder)
}

fn generate(command: &Command, folder: &Path) -> io::Result<()> {
    for command in command.get_subcommands().filter(|one| !one.is_hide_set()) {
        generate(command, folder)?;
    }
    let man = Man::new(command.clone()).source(concat!("thinctl ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    synopsis(command).to_writer(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if command.get_version().is_some() {
        man.render_version_section(&mut page)?;
    }
    exit_codes(command).to_writer(&mut page)?;
    fs::write(folder.join(man.get_filename()), page)
}

/// The ways to call a command, as its help tells them. The generator's own synopsis leaves out the values of options, and
/// knows of one way only.
fn synopsis(command: &Command) -> Roff {
    let usage = command.clone().render_usage().to_string();
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let mut section = Roff::new();
    section.control("SH", ["SYNOPSIS"]);
    for (number, line) in usage.lines().enumerate() {
        let line = line.trim_start_matches("Usage:").trim_start();
        if number > 0 {
            section.control("br", []);
        }
        match line.strip_prefix(name) {
            Some(rest) => section.text([bold(name), roman(rest)]),
            None => section.text([roman(line)]),
        };
    }
    section
}

/// What is told after the options.
fn exit_codes(command: &Command) -> Roff {
    let mut section = Roff::new();
    if let Some(text) = command.get_after_long_help() {
        section.control("SH", ["EXIT STATUS"]);
        // A table, which is not to be filled.
        section.control("nf", []);
        for line in text.to_string().lines() {
            section.text([roman(line)]);
        }
        section.control("fi", []);
    }
    section
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    #[test]
    fn a_synopsis_is_that_of_the_help() {
        let folder = tempfile::tempdir().unwrap();
        generate_to(cli::command(), folder.path()).unwrap();
        let page = |name: &str| {
            let text = fs::read_to_string(folder.path().join(name)).unwrap();
            text.replace("\\-", "-")
        };
        let restore = page("thinctl-restore.1");
        for way in ["<NAME> <POOL> <ID>", "<NAME> --into <DEVICE>"] {
            let line = format!("\\fBthinctl restore\\fR [OPTIONS] <REPOSITORY> {way}\n");
            assert!(restore.contains(&line), "{restore}");
        }
        let replicate = page("thinctl-replicate.1");
        assert!(
            replicate
                .contains("\\fBthinctl replicate\\fR [OPTIONS] --to <COMMAND> <POOL> <VOLUME>\n"),
            "{replicate}"
        );
        assert!(page("thinctl.1").contains("\\fBthinctl\\fR [OPTIONS] <COMMAND>\n"));
    }
}
