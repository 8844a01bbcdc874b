// SPDX-License-Identifier: GPL-2.0

//! The program `thinctl`; see the library of this name.

use std::{
    io::{
        self,
        Write, //
    },
    process::ExitCode, //
};

use clap::FromArgMatches;

use thinctl::{
    cli::{
        self,
        Cli, //
    },
    commands,
    error::{
        Error,
        Result, //
    },
    quiet,
    tell::tell, //
};

fn main() -> ExitCode {
    let parsed = cli::command()
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let result = match parsed {
        Ok(cli) => commands::run(&cli),
        // The command line is wrong, which clap tells; that nobody can read it changes nothing.
        Err(e) if e.use_stderr() => e.exit(),
        // Somebody wants help.
        Err(e) => print(&e),
    };
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            if !e.is_unread() {
                tell(&e);
            }
            ExitCode::from(e.exit_code())
        }
    };
    quiet::end_all(true);
    code
}

fn print(help: &clap::Error) -> Result {
    help.print()
        .and_then(|()| io::stdout().flush())
        .map_err(Error::io("standard output"))
}
