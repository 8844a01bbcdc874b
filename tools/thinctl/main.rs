// SPDX-License-Identifier: GPL-2.0

//! The program `thinctl`; see the library of this name.

use std::process::ExitCode;

use clap::FromArgMatches;

use thinctl::{
    cli::{
        self,
        Cli, //
    },
    commands,
    tell::tell, //
};

fn main() -> ExitCode {
    let cli = Cli::from_arg_matches(&cli::command().get_matches()).unwrap_or_else(|e| e.exit());
    match commands::run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            if !e.is_unread() {
                tell(&e);
            }
            ExitCode::from(e.exit_code())
        }
    }
}
