// SPDX-License-Identifier: GPL-2.0

//! The command line.

use std::{
    num::NonZeroU64,
    path::PathBuf, //
};

use clap::{
    builder::NonEmptyStringValueParser,
    Args,
    CommandFactory,
    Parser,
    Subcommand, //
};
use clap_complete::Shell;

use crate::{
    id::{
        self,
        PoolId,
        PoolVolume, //
    },
    number,
    repository,
    size,
    stream::ResumeToken, //
};

/// Backup, migration, merging and replication of thin volumes, from metadata snapshots.
///
/// POOL is the name of an active pool: that of its device, or lvm2's vg/lv. Volumes are named by their ids in the pool, or
/// by the names of their devices while they are active, also as lvm2's vg/lv. Ids are numbers up to 16777215; those from
/// 8388608 on are thinctl's own, and a new volume gets one below. DEVICE is a path, or lvm2's vg/lv.
#[derive(Parser)]
#[command(name = "thinctl", version, after_long_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What applies to all commands.
    #[command(flatten)]
    pub global: Global,
}

/// What the process ends with; in the help and in the manual page of each command.
pub const EXIT_CODES: &str = "\
Exit codes:
  0     done
  1     a system call or a request to device-mapper failed, for want of root's
        rights, for instance
  2     the command line is wrong
  3     there is no pool, volume, device, generation or file of this name
  4     something is in the way that may go away: a lock, somebody else's metadata
        snapshot, an open volume
  5     refused: something is of another kind or in another state than is needed,
        or exists already
  6     a stream, a backup or a file of thinctl's own is cut off, damaged or of
        another version
  7     the metadata cannot be read
  8     a command that was called failed
  9     a pool has no room for what is to be written
  128+  stopped by the signal of that number, less 128; 141 if nobody reads the
        output any more";

/// The command line, with the exit codes told of by each command.
pub fn command() -> clap::Command {
    Cli::command().mut_subcommands(|command| {
        command
            .after_long_help(EXIT_CODES)
            // Whoever gives -1 hears what is wanted, and not that there is no such option.
            .mut_args(|arg| match arg.get_action().takes_values() {
                true => arg.allow_negative_numbers(true),
                false => arg,
            })
    })
}

/// What applies to all commands.
#[derive(Args)]
pub struct Global {
    /// Print results as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Show no progress
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Where to remember what must be remembered
    #[arg(
        long,
        global = true,
        value_name = "FOLDER",
        env = "THINCTL_HOME",
        default_value = "/var/lib/thinctl"
    )]
    pub home: PathBuf,
    /// Where to note what is of no use after the machine has stopped; in memory, not on a volume
    #[arg(
        long,
        global = true,
        value_name = "FOLDER",
        env = "THINCTL_RUN",
        default_value = "/run/thinctl"
    )]
    pub run: PathBuf,
}

/// What applies to commands that read a pool's metadata.
#[derive(Args, Clone, Copy, Default)]
pub struct Force {
    /// Release a metadata snapshot that is in the way, whoever has taken it
    #[arg(long)]
    pub force: bool,
}

/// How a stream is made.
#[derive(Args, Clone)]
pub struct Sending {
    /// How hard to compress, from 1 (quick) to 19
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = number::parse_level)]
    pub level: i32,
    /// Send no more than so many bytes a second, as in 10M
    #[arg(long, value_parser = size::parse_rate)]
    pub rate: Option<NonZeroU64>,
}

/// Where what was sent or backed up goes to.
#[derive(Args, Clone)]
pub struct Place {
    /// The pool
    #[arg(required_unless_present = "into", value_parser = id::parse_pool)]
    pub pool: Option<String>,
    /// The id of the volume
    #[arg(required_unless_present = "into", value_parser = id::parse_new)]
    pub id: Option<u32>,
    /// Write into this device, which nobody uses, for instance a volume that `lvcreate -V` has made; what it holds is lost
    #[arg(long, value_name = "DEVICE", conflicts_with_all = ["pool", "id"])]
    pub into: Option<PathBuf>,
    /// Try it also if the pool seems to have no room for it
    #[arg(long)]
    pub anyway: bool,
    /// What to do about metadata snapshots.
    #[command(flatten)]
    pub force: Force,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Show what a pool has and how much of it is used
    Status {
        /// The pool
        #[arg(value_parser = id::parse_pool)]
        pool: String,
    },
    /// List a pool's volumes: mapped, exclusive and shared bytes, and what they are snapshots of
    Ls {
        /// The pool
        #[arg(value_parser = id::parse_pool)]
        pool: String,
        /// What to do about metadata snapshots.
        #[command(flatten)]
        force: Force,
    },
    /// Draw which blocks of a pool, or of a volume, are mapped, shared and free
    Map {
        /// The pool
        #[arg(value_parser = id::parse_pool)]
        pool: String,
        /// The volume; without it, the pool's data device is drawn
        #[arg(value_parser = id::parse_name)]
        volume: Option<String>,
        /// Write an SVG to this file
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
        /// How many columns of characters to draw
        #[arg(long, value_name = "N", value_parser = number::parse_positive::<u32>)]
        width: Option<u32>,
        /// What to do about metadata snapshots.
        #[command(flatten)]
        force: Force,
    },
    /// Show which ranges of two volumes differ
    Diff {
        /// The pool
        #[arg(value_parser = id::parse_pool)]
        pool: String,
        /// The left volume
        #[arg(value_parser = id::parse_name)]
        left: String,
        /// The right volume
        #[arg(value_parser = id::parse_name)]
        right: String,
        /// Show also which ranges are the same
        #[arg(long)]
        same: bool,
        /// What to do about metadata snapshots.
        #[command(flatten)]
        force: Force,
    },
    /// Take a snapshot of a volume, which is suspended meanwhile if it is active
    Snapshot {
        /// The pool
        #[arg(value_parser = id::parse_pool)]
        pool: String,
        /// The volume
        #[arg(value_parser = id::parse_name)]
        origin: String,
        /// The id of the snapshot
        #[arg(value_parser = id::parse_new)]
        id: u32,
    },
    /// Write a volume, or what has changed since another one, to the standard output
    Send {
        /// The pool
        #[arg(value_parser = id::parse_pool)]
        pool: String,
        /// The volume, which nobody writes to
        #[arg(value_parser = id::parse_name)]
        volume: String,
        /// The volume that the stream starts from
        #[arg(long, value_name = "VOLUME", value_parser = id::parse_name)]
        from: Option<String>,
        /// Go on where a stream was cut off, as `thinctl token` tells
        #[arg(long, value_name = "TOKEN")]
        resume: Option<ResumeToken>,
        /// How
        #[command(flatten)]
        sending: Sending,
        /// What to do about metadata snapshots.
        #[command(flatten)]
        force: Force,
    },
    /// Make a volume of a stream from the standard input, or write it into a device
    ///
    /// A stream of a whole volume makes a new volume. One that has what changed since a state takes the volume from that
    /// state to the next. The volume is changed all at once in the end. A device is changed meanwhile.
    #[command(
        override_usage = "thinctl receive [OPTIONS] <POOL> <ID>\n       thinctl receive [OPTIONS] --into <DEVICE>"
    )]
    Receive {
        /// Where to
        #[command(flatten)]
        place: Place,
        /// Apply the stream to a snapshot of this volume, and leave the volume as it is
        #[arg(long, value_name = "VOLUME", conflicts_with = "into", value_parser = id::parse_name)]
        base: Option<String>,
    },
    /// Print where a stream that was cut off should go on
    Token {
        /// The pool
        #[arg(value_parser = id::parse_pool)]
        pool: String,
        /// The id of the volume
        #[arg(value_parser = id::parse)]
        id: u32,
    },
    /// Give up what was received of a stream that was cut off
    Abandon {
        /// The pool
        #[arg(value_parser = id::parse_pool)]
        pool: String,
        /// The id of the volume
        #[arg(value_parser = id::parse)]
        id: u32,
        /// What to do about metadata snapshots.
        #[command(flatten)]
        force: Force,
    },
    /// Make a repository, a folder that backups are put into
    ///
    /// The folder must be empty, but for the lost+found of a new file system, or not be there yet. The one that it is in must be
    /// there.
    Init {
        /// The folder
        repository: PathBuf,
    },
    /// Make the next generation of a backup; the volume may be in use
    Backup {
        /// The pool
        #[arg(value_parser = id::parse_pool)]
        pool: String,
        /// The volume
        #[arg(value_parser = id::parse_name)]
        volume: String,
        /// The folder with the backups
        repository: PathBuf,
        /// The volume's name there [default: the pool's name and the volume's id]
        #[arg(long, value_parser = repository::parse_name)]
        name: Option<String>,
        /// Make a full generation, which needs none of those that are there; they are kept
        #[arg(long)]
        full: bool,
        /// Go on with the backups of another volume, which this one takes the place of
        #[arg(long)]
        adopt: bool,
        /// How
        #[command(flatten)]
        sending: Sending,
        /// What to do about metadata snapshots.
        #[command(flatten)]
        force: Force,
    },
    /// List the generations of backups
    Backups {
        /// The folder with the backups
        repository: PathBuf,
        /// The volume's name there
        #[arg(value_parser = repository::parse_name)]
        name: Option<String>,
    },
    /// Read backups whole, and check all of it
    Verify {
        /// The folder with the backups
        repository: PathBuf,
        /// The volume's name there
        #[arg(value_parser = repository::parse_name)]
        name: Option<String>,
    },
    /// Delete old generations, such that those which stay can be restored
    Prune {
        /// The folder with the backups
        repository: PathBuf,
        /// The volume's name there
        #[arg(value_parser = repository::parse_name)]
        name: String,
        /// How many generations to keep
        #[arg(long, value_name = "N", value_parser = number::parse_positive::<usize>)]
        keep: usize,
    },
    /// Make a volume of a backup, or write it into a device
    ///
    /// POOL gets a new volume: ID is one that it has no volume of, as `thinctl ls` tells. A pool of lvm2 gets none, as lvm2
    /// would not know of it: make a volume with `lvcreate -V`, and write into it with --into.
    #[command(
        override_usage = "thinctl restore [OPTIONS] <REPOSITORY> <NAME> <POOL> <ID>\n       thinctl restore [OPTIONS] <REPOSITORY> <NAME> --into <DEVICE>"
    )]
    Restore {
        /// The folder with the backups
        repository: PathBuf,
        /// The volume's name there
        #[arg(value_parser = repository::parse_name)]
        name: String,
        /// Where to
        #[command(flatten)]
        place: Place,
        /// The generation [default: the last]
        #[arg(long, value_name = "N", value_parser = number::parse_positive::<u64>)]
        generation: Option<u64>,
    },
    /// Move a volume to another pool, while it is in use
    ///
    /// The volume is copied, and if it is active, its device gets a table of the other pool then. It stays in its old pool,
    /// unless --delete is given. If a migration is cut off, the same command goes on with it.
    ///
    /// lvm2 would not know of any of this. So its volumes must be deactivated before they are copied, and deleted with
    /// `lvremove` instead of --delete; and into a pool of lvm2, a volume is not migrated but sent, by `thinctl send` and
    /// `thinctl receive --into`.
    ///
    /// Only while a volume is active does anything tell whether it has an external origin. For one that is not, --origin or
    /// --no-origin must tell, where blocks of the two pools do not fit each other.
    Migrate {
        /// Pool and volume, as in POOL:ID
        #[arg(value_parser = PoolVolume::parse)]
        from: PoolVolume,
        /// Where to: POOL, or POOL:ID for another id
        #[arg(value_parser = PoolId::parse)]
        to: PoolId,
        /// Delete the volume in its old pool afterwards, where it stays otherwise
        #[arg(long)]
        delete: bool,
        /// The external origin of a volume that is not active: what is read of it where nothing is mapped
        #[arg(long, value_name = "DEVICE")]
        origin: Option<PathBuf>,
        /// The volume, which is not active, has no external origin: zeroes are read where nothing is mapped
        #[arg(long, conflicts_with = "origin")]
        no_origin: bool,
        /// Try it also if the pool seems to have no room for it
        #[arg(long)]
        anyway: bool,
        /// Copy no more than so many bytes while the volume is suspended, as in 64M
        #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = size::parse)]
        suspended_bytes: u64,
        /// Let the volume be suspended for no longer than so many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = number::parse_positive::<u64>)]
        suspended_seconds: u64,
        /// What to do about metadata snapshots.
        #[command(flatten)]
        force: Force,
    },
    /// Write what a volume has of its own into its external origin
    ///
    /// A volume that is not active does not tell which device that is: whatever is named is overwritten where the volume has
    /// something of its own. `dmsetup table` shows the origin's number as long as the volume is active.
    Merge {
        /// The pool
        #[arg(value_parser = id::parse_pool)]
        pool: String,
        /// The volume
        #[arg(value_parser = id::parse_name)]
        volume: String,
        /// The external origin, which nobody uses
        #[arg(long, value_name = "DEVICE")]
        into: PathBuf,
        /// Delete the volume afterwards
        #[arg(long)]
        delete: bool,
        /// Try it also if the external origin is a thin volume whose pool seems to have no room for it
        #[arg(long)]
        anyway: bool,
        /// What to do about metadata snapshots.
        #[command(flatten)]
        force: Force,
    },
    /// Send what has changed of a volume to a command, again and again
    Replicate {
        /// The pool
        #[arg(value_parser = id::parse_pool)]
        pool: String,
        /// The volume, which may be in use
        #[arg(value_parser = id::parse_name)]
        volume: String,
        /// The command, for instance 'ssh HOST thinctl receive POOL ID'
        #[arg(long, value_name = "COMMAND", value_parser = NonEmptyStringValueParser::new())]
        to: String,
        /// So many seconds lie between the beginnings of two turns; 0 for one right after the other, as long as there is something to do
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = number::parse::<u64>)]
        every: u64,
        /// End after so many turns
        #[arg(long, value_name = "N", value_parser = number::parse_positive::<u64>)]
        turns: Option<u64>,
        /// Give up a turn if the command takes nothing, or does not end, for so many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = number::parse_positive::<u64>)]
        patience: u64,
        /// Delete the snapshots that are kept for the next turn, and end; VOLUME and --to say of which replication. If it begins
        /// anew, the whole volume is sent, and the other pool must not have it any more
        #[arg(long)]
        forget: bool,
        /// How
        #[command(flatten)]
        sending: Sending,
        /// What to do about metadata snapshots.
        #[command(flatten)]
        force: Force,
    },
    /// List the volumes that thinctl keeps for itself, and what for
    Kept {
        /// The pool
        #[arg(value_parser = id::parse_pool)]
        pool: String,
        /// What to do about metadata snapshots.
        #[command(flatten)]
        force: Force,
    },
    /// Delete a snapshot that a backup or a replication goes on from, as `kept` lists them
    ///
    /// The next backup is a full one then, and the next turn sends the whole volume. Of a migration or a merge that is not
    /// finished, all that it keeps is deleted, and it is given up.
    Forget {
        /// The pool
        #[arg(value_parser = id::parse_pool)]
        pool: String,
        /// The id of the snapshot
        #[arg(value_parser = id::parse)]
        id: u32,
        /// What to do about metadata snapshots.
        #[command(flatten)]
        force: Force,
    },
    /// Write manual pages and shell completions into a folder
    Generate {
        /// The folder
        folder: PathBuf,
        /// Completions for these shells
        #[arg(long, value_name = "SHELL", default_values_t = [Shell::Bash, Shell::Fish, Shell::Zsh])]
        shell: Vec<Shell>,
    },
    /// How thinctl calls itself: undo what a run leaves, once the standard input has ended
    #[command(hide = true)]
    Guard {
        /// The pool
        pool: String,
        /// The name of the journals
        journal: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of a table.
    fn words(text: &str) -> Vec<&str> {
        text.split_whitespace().collect()
    }

    #[test]
    fn exit_codes_are_those_of_the_documentation() {
        let document = include_str!("../../Documentation/metadata-snapshots.rst");
        let (_, rest) = document.split_once("Exit codes\n==========").unwrap();
        let table = rest.split("\n=====  ").nth(2).unwrap();
        let table = table.split_once('\n').unwrap().1;
        assert_eq!(
            words(table),
            words(EXIT_CODES.strip_prefix("Exit codes:").unwrap())
        );
    }
}
