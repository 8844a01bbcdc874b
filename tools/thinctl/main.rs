// SPDX-License-Identifier: GPL-2.0

//! The program `thinctl`; see the library of this name.

use std::process::ExitCode;

use clap::Parser;

use thinctl::{
    cli::Cli,
    commands,
    tell::tell, //
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match commands::run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tell(&e);
            ExitCode::from(e.exit_code())
        }
    }
}
