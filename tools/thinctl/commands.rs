// SPDX-License-Identifier: GPL-2.0

//! What the commands of the command line do.

mod look;
mod turns;

use std::{
    collections::BTreeMap,
    fs,
    io::{
        self,
        BufRead,
        IsTerminal,
        Write, //
    },
    path::Path,
    time::Duration,
};

use serde::Serialize;

use crate::{
    backup,
    cli::{
        self,
        Cli,
        Command,
        Force,
        Global,
        Place,
        Sending, //
    },
    date, device,
    error::{
        Error,
        Result, //
    },
    guard,
    id::PoolVolume,
    into::write_into,
    kept, lvm2, manual, merge, migrate,
    number::count,
    progress::Progress,
    rate::Limited,
    receive,
    repository::{
        self,
        Generation,
        Listed,
        Repository, //
    },
    send,
    session::Session,
    signals,
    stream::{
        Changes,
        Header,
        Reader, //
    },
    tell::tell,
    usage,
};

/// Runs the command that the command line names.
pub fn run(cli: &Cli) -> Result {
    let global = &cli.global;
    // A guard outlives the signals.
    if !matches!(cli.command, Command::Guard { .. }) {
        signals::watch()?;
    }
    match &cli.command {
        Command::Status { pool } => look::status(global, &global.session(pool, Force::default())?),
        Command::Ls { pool, force } => look::ls(global, &global.session(pool, *force)?),
        Command::Map {
            pool,
            volume,
            svg,
            width,
            force,
        } => look::map(
            global,
            &global.session(pool, *force)?,
            volume.as_deref(),
            svg.as_deref(),
            *width,
        ),
        Command::Diff {
            pool,
            left,
            right,
            same,
            force,
        } => look::diff(global, &global.session(pool, *force)?, left, right, *same),
        Command::Snapshot { pool, origin, id } => {
            let session = global.session(pool, Force::default())?;
            lvm2::check_snapshots(&session.pool, *id)?;
            let origin = session.pool.volume_id(&session.dm, origin)?;
            session.snapshot_as(*id, origin)
        }
        Command::Send {
            pool,
            volume,
            from,
            resume,
            sending,
            force,
        } => {
            if io::stdout().is_terminal() {
                return Err(Error::Refused(
                    "a stream is not for a terminal: redirect the output".to_owned(),
                ));
            }
            let session = global.session(pool, *force)?;
            let id = session.pool.volume_id(&session.dm, volume)?;
            let from = global.volume(&session, from.as_deref())?;
            let request = send::Request {
                id,
                from,
                size: 0,
                is_old_size: false,
                resume: resume.as_ref(),
            };
            let plan = send::plan(&session, &request)?;
            let progress = global.progress("send");
            progress.set_total(plan.header.data);
            let output = sending.limit(Box::new(io::stdout()));
            send::send(&session, plan, output, sending.level, |n| progress.add(n))?;
            Ok(())
        }
        Command::Receive { place, base } => {
            let done = |f: &mut dyn Write, outcome, _: &Header| match (outcome, place.id) {
                (receive::Outcome::AlreadyThere, Some(id)) => {
                    writeln!(f, "volume {id} was in the stream's state already")
                }
                _ => Ok(()),
            };
            global.take("receive", place, base.as_deref(), stream, done)
        }
        Command::Token { pool, id } => {
            let session = global.session(pool, Force::default())?;
            let partial = receive::Partial::load(&session, *id)?.ok_or_else(|| {
                Error::NotFound(format!(
                    "no volume {id} is being received in pool {}",
                    session.pool.name
                ))
            })?;
            let token = partial.token().to_string();
            global.print(&token, |f| writeln!(f, "{token}"))
        }
        Command::Abandon { pool, id, force } => {
            receive::abandon(&global.session(pool, *force)?, *id)
        }
        Command::Migrate {
            from,
            to,
            delete,
            origin,
            no_origin,
            anyway,
            suspended_bytes,
            suspended_seconds,
            force,
        } => {
            let same = || Error::Usage("a volume is not migrated to itself".to_owned());
            if to.is(from) {
                return Err(same());
            }
            let PoolVolume { pool, volume } = from;
            let from = global.session(pool, *force)?;
            let id = from.pool.volume_id(&from.dm, volume)?;
            let to_id = to.or(id)?;
            let to = global.session(&to.pool, *force)?;
            if (to.pool.device, to_id) == (from.pool.device, id) {
                return Err(same());
            }
            let progress = global.progress("migrate");
            let options = migrate::Options {
                to_id,
                delete: *delete,
                anyway: *anyway,
                origin: match origin {
                    None if *no_origin => migrate::Origin::None,
                    None => migrate::Origin::Unknown,
                    Some(path) => {
                        let path = device::find(&from.dm, path)?;
                        migrate::Origin::Device(device::number(&path)?)
                    }
                },
                most: *suspended_bytes,
                longest: Duration::from_secs(*suspended_seconds),
            };
            let migrated = migrate::migrate(&from, id, &to, &options, |total, n| {
                update(&progress, total, n)
            })?;
            drop(progress);
            global.print(&migrated, |f| {
                writeln!(
                    f,
                    "{} bytes in {}; suspended for {:.3} s, for {} bytes",
                    migrated.copied,
                    count(migrated.passes, "pass"),
                    migrated.suspended,
                    migrated.copied_suspended
                )?;
                migrated.switched.iter().try_for_each(|name| {
                    writeln!(f, "{name} has a table of pool {} now", to.pool.name)
                })
            })
        }
        Command::Merge {
            pool,
            volume,
            into,
            delete,
            anyway,
            force,
        } => {
            let session = global.session(pool, *force)?;
            let id = session.pool.volume_id(&session.dm, volume)?;
            let options = merge::Options {
                delete: *delete,
                anyway: *anyway,
            };
            let progress = global.progress("merge");
            let merged = merge::merge(&session, id, into, &options, |total, n| {
                update(&progress, total, n)
            })?;
            drop(progress);
            global.print(&merged, |f| writeln!(f, "{} bytes written", merged.written))
        }
        Command::Replicate {
            pool,
            volume,
            to,
            every,
            turns,
            patience,
            forget,
            sending,
            force,
        } => {
            let command = turns::Replicate {
                pool,
                volume,
                to,
                every: Duration::from_secs(*every),
                patience: Duration::from_secs(*patience),
                sending,
                force: *force,
            };
            match forget {
                true => command.forget(global),
                false => command.run(global, *turns),
            }
        }
        Command::Kept { pool, force } => look::kept(global, &global.session(pool, *force)?),
        Command::Forget { pool, id, force } => {
            let open = |name: &str| global.session(name, *force);
            kept::forget(&open(pool)?, *id, &open)
        }
        Command::Generate { folder, shell } => generate(folder, shell),
        Command::Init { repository } => Repository::create(repository).map(drop),
        Command::Guard { pool, journal } => guard::watch(&global.home, &global.run, pool, journal),
        Command::Backup {
            pool,
            volume,
            repository,
            name,
            full,
            adopt,
            sending,
            force,
        } => {
            // None is made here: its file system may not be mounted.
            let locked = Repository::open(repository)?.lock()?;
            let session = global.session(pool, *force)?;
            let id = session.pool.volume_id(&session.dm, volume)?;
            let usual = format!("{}-{id}", session.pool.name);
            let options = backup::Options {
                repository,
                name: name.as_deref().unwrap_or(&usual),
                full: *full,
                adopt: *adopt,
                level: sending.level,
            };
            let progress = global.progress("backup");
            let made = backup::backup(&session, id, &locked, &options, |total, n| {
                update(&progress, total, n);
            })?;
            drop(progress);
            if let (Some(made), Some(size)) = (&made, session.active_size(id)?) {
                let whole = made.header.size;
                if whole > size {
                    tell(format_args!(
                        "the volume has {size} bytes, and what is restored has {whole}: it was larger, or has blocks mapped \
                         beyond its end"
                    ));
                }
            }
            global.print(&made, |f| match &made {
                Some(generation) => print_generation(f, options.name, generation),
                None => writeln!(f, "{}: nothing has changed", options.name),
            })
        }
        Command::Backups { repository, name } => {
            let repository = Repository::open(repository)?;
            let names = match name {
                Some(name) => vec![name.clone()],
                None => repository.volumes()?,
            };
            let mut all = BTreeMap::new();
            for name in names {
                let listed = repository.list(&name)?;
                all.insert(name, listed);
            }
            global.print(&all, |f| print_list(f, &all))?;
            let damaged = all
                .values()
                .flatten()
                .filter(|one| matches!(one, Listed::Unreadable { .. }))
                .count();
            match damaged {
                0 => Ok(()),
                n => Err(Error::Damaged(format!(
                    "{} cannot be read; `thinctl verify` tells what can be restored",
                    count(n, "generation")
                ))),
            }
        }
        Command::Verify { repository, name } => {
            let repository = Repository::open(repository)?;
            let progress = global.progress("verify");
            let found = repository.verify(name.as_deref(), &mut |n| {
                progress.add(n);
                signals::check()
            })?;
            drop(progress);
            global.print(&found, |f| {
                found.problems.iter().try_for_each(|problem| {
                    let repository::Problem {
                        volume,
                        generation,
                        problem,
                    } = problem;
                    writeln!(f, "{volume} {generation}: {problem}")
                })?;
                writeln!(
                    f,
                    "{}, {} bytes read",
                    count(found.generations, "generation"),
                    found.bytes
                )
            })?;
            match found.problems.len() {
                0 => Ok(()),
                n => Err(Error::Damaged(format!(
                    "{} cannot be restored",
                    count(n, "generation")
                ))),
            }
        }
        Command::Prune {
            repository,
            name,
            keep,
        } => {
            let repository = Repository::open(repository)?.lock()?;
            let progress = global.progress("prune");
            let pruned = repository.prune(name, *keep, &mut |n| {
                progress.add(n);
                signals::check()
            })?;
            drop(progress);
            global.print(&pruned, |f| {
                if let Some(number) = pruned.made_full {
                    writeln!(f, "generation {number} is a full one now")?;
                }
                writeln!(f, "generations removed: {}", pruned.removed.len())
            })
        }
        Command::Restore {
            repository,
            name,
            place,
            generation,
        } => {
            let open = || Repository::open(repository)?.restore(name, *generation);
            let done = |f: &mut dyn Write, outcome, header: &Header| {
                let was = match outcome {
                    receive::Outcome::Received => "is",
                    receive::Outcome::AlreadyThere => "was already, and is",
                };
                write!(
                    f,
                    "{name} of {} UTC, {} bytes with {} bytes of data, {was} ",
                    date::utc(header.time),
                    header.size,
                    header.data
                )?;
                match place {
                    Place {
                        into: Some(path), ..
                    } => writeln!(f, "in {}", path.display()),
                    Place {
                        pool: Some(pool),
                        id: Some(id),
                        ..
                    } => writeln!(f, "volume {id} of pool {pool}"),
                    Place { .. } => writeln!(f, "restored"),
                }
            };
            global.take("restore", place, None, open, done)
        }
    }
}

/// The stream that comes on the standard input.
fn stream() -> Result<Reader<io::StdinLock<'static>>> {
    let mut input = io::stdin().lock();
    if input.is_terminal() {
        return Err(Error::Refused(
            "a stream does not come from a terminal: redirect the input".to_owned(),
        ));
    }
    if input
        .fill_buf()
        .map_err(Error::io("standard input"))?
        .is_empty()
    {
        return Err(Error::Damaged(
            "the standard input is empty: what should send a stream may have failed".to_owned(),
        ));
    }
    Reader::new(input)
}

/// There is so much to do from now on, or so much more was done.
fn update(progress: &Progress, total: Option<u64>, bytes: u64) {
    if let Some(total) = total {
        progress.resume(0);
        progress.set_total(total);
    }
    progress.add(bytes);
}

/// A table of backups.
fn print_list(f: &mut dyn Write, all: &BTreeMap<String, Vec<Listed>>) -> io::Result<()> {
    let width = all.keys().map(|name| name.chars().count()).max();
    let width = width.unwrap_or(0).max("NAME".len());
    writeln!(
        f,
        "{:<width$} {:>10}  {:<11}  {:<19} {:>12} {:>12} {:>12}",
        "NAME", "GENERATION", "KIND", "MADE (UTC)", "SIZE", "DATA", "STORED"
    )?;
    for (name, listed) in all {
        for one in listed {
            match one {
                Listed::Generation(one) => writeln!(
                    f,
                    "{name:<width$} {:>10}  {:<11}  {:<19} {:>12} {:>12} {:>12}",
                    one.number,
                    one.kind.name(),
                    date::utc(one.created),
                    usage::bytes(one.header.size),
                    usage::bytes(one.header.data),
                    usage::bytes(one.totals.stored)
                )?,
                Listed::Unreadable {
                    number,
                    kind,
                    problem,
                } => writeln!(
                    f,
                    "{name:<width$} {number:>10}  {:<11}  {problem}",
                    kind.name()
                )?,
            }
        }
    }
    Ok(())
}

/// One line about a generation.
fn print_generation(f: &mut dyn Write, name: &str, generation: &Generation) -> io::Result<()> {
    let kind = generation.kind.name();
    writeln!(
        f,
        "{name} {}: {kind}, {} bytes of data, {} bytes in the repository",
        generation.number, generation.header.data, generation.totals.stored
    )
}

/// Writes manual pages and completions.
fn generate(folder: &Path, shells: &[clap_complete::Shell]) -> Result {
    fs::create_dir_all(folder).map_err(Error::io(folder.display()))?;
    // Completions would offer what is hidden.
    let whole = cli::command();
    let shown = whole
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    let mut command = clap::Command::new("thinctl")
        .version(env!("CARGO_PKG_VERSION"))
        .args(whole.get_arguments().cloned())
        .subcommands(shown.cloned());
    for shell in shells {
        clap_complete::generate_to(*shell, &mut command, "thinctl", folder)
            .map_err(Error::io(folder.display()))?;
    }
    manual::generate_to(whole, folder).map_err(Error::io(folder.display()))
}

impl Global {
    /// Takes what `open` gives to where it is to go.
    fn take<C: Changes>(
        &self,
        what: &str,
        place: &Place,
        base: Option<&str>,
        open: impl FnOnce() -> Result<C>,
        done: impl FnOnce(&mut dyn Write, receive::Outcome, &Header) -> io::Result<()>,
    ) -> Result {
        let Place { anyway, force, .. } = *place;
        let (outcome, header) = match place {
            Place {
                into: Some(path), ..
            } => {
                let mut changes = open()?;
                let progress = self.progress(what);
                progress.set_total(changes.header().data);
                let session = |pool: &str| self.session(pool, force);
                write_into(path, anyway, session, &mut changes, |n| progress.add(n))?;
                (receive::Outcome::Received, changes.header().clone())
            }
            Place {
                pool: Some(pool),
                id: Some(id),
                ..
            } => {
                let session = self.session(pool, force)?;
                lvm2::check_makes(&session.pool, *id)?;
                let options = receive::Options {
                    base: self.volume(&session, base)?,
                    anyway,
                };
                let mut changes = open()?;
                let progress = self.progress(what);
                progress.set_total(changes.header().data);
                let outcome =
                    receive::receive(&session, *id, &options, &mut changes, |n| progress.add(n))?;
                (outcome, changes.header().clone())
            }
            // clap has refused it.
            Place { .. } => return Err(Error::Usage("POOL and ID are missing".to_owned())),
        };
        self.print(&outcome, |f| done(f, outcome, &header))
    }

    /// Begins work with a pool.
    fn session(&self, pool: &str, Force { force }: Force) -> Result<Session> {
        Session::open(&self.home, &self.run, pool, force)
    }

    fn volume(&self, session: &Session, name: Option<&str>) -> Result<Option<u32>> {
        name.map(|name| session.pool.volume_id(&session.dm, name))
            .transpose()
    }

    fn progress(&self, what: &str) -> Progress {
        Progress::new(what, None, self.quiet || self.json)
    }

    /// Prints a result, as JSON or as `text` does.
    fn print<T: Serialize>(
        &self,
        result: &T,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result {
        let mut output = io::stdout().lock();
        let printed = if self.json {
            serde_json::to_writer(&mut output, result)
                .map_err(io::Error::from)
                .and_then(|()| writeln!(output))
        } else {
            text(&mut output)
        };
        printed
            .and_then(|()| output.flush())
            .map_err(Error::io("standard output"))
    }
}

impl Sending {
    /// Limits a pipe to the rate that was asked for.
    fn limit(&self, output: Box<dyn Write>) -> Box<dyn Write> {
        Box::new(Limited::new(output, self.rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_not_offered() {
        let folder = tempfile::tempdir().unwrap();
        generate(
            folder.path(),
            &[clap_complete::Shell::Bash, clap_complete::Shell::Zsh],
        )
        .unwrap();
        let mut offered = 0;
        for entry in fs::read_dir(folder.path()).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            assert!(!text.contains("guard"));
            offered += usize::from(text.contains("receive"));
        }
        // Both shells, and two man pages at least.
        assert!(offered >= 4, "{offered}");
    }
}
