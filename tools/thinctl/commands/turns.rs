// SPDX-License-Identifier: GPL-2.0

//! Replication in turns.

use std::time::{
    Duration,
    Instant, //
};

use super::update;
use crate::{
    cli::{
        Force,
        Global,
        Sending, //
    },
    error::{
        Error,
        Result, //
    },
    replicate::Replication,
    session::Session,
    signals,
    tell::tell, //
};

/// The least time from the beginning of a turn that has failed, or had nothing to send, to that of the next.
const PAUSE: Duration = Duration::from_secs(1);

/// What is replicated where to, and how.
pub(super) struct Replicate<'a> {
    pub(super) pool: &'a str,
    pub(super) volume: &'a str,
    /// The command that gets the streams.
    pub(super) to: &'a str,
    /// The time from the beginning of a turn to that of the next.
    pub(super) every: Duration,
    /// How long the command may take nothing.
    pub(super) patience: Duration,
    pub(super) sending: &'a Sending,
    pub(super) force: Force,
}

/// Why turns with a pool have ended.
enum End {
    /// It was the last one.
    Done,
    /// The session must end, and another one begin after so long: the pool is another one now, or this one could not resume
    /// a device, for which its guard waits until it has ended.
    Anew(Duration),
}

impl Replicate<'_> {
    /// Takes so many turns, or goes on until a signal ends it. A turn that fails is told of, and made up for by the next.
    pub(super) fn run(&self, global: &Global, mut turns: Option<u64>) -> Result {
        let mut known = None;
        loop {
            let session = match global.session(self.pool, self.force) {
                // It was there before, and may be made anew just now.
                Err(e)
                    if known.is_some() && !matches!(e, Error::Refused(_) | Error::Damaged(_)) =>
                {
                    end_turn(&mut turns, e)?;
                    signals::sleep(self.every.max(PAUSE))?;
                    continue;
                }
                session => session?,
            };
            let id = match known {
                Some(id) => id,
                None => *known.insert(self.volume_of(&session)?),
            };
            match self.take_turns(global, &session, id, &mut turns)? {
                End::Done => return Ok(()),
                End::Anew(pause) => {
                    drop(session);
                    signals::sleep(pause)?;
                }
            }
        }
    }

    /// Gives up what is kept for the next turn.
    pub(super) fn forget(&self, global: &Global) -> Result {
        let session = global.session(self.pool, self.force)?;
        let id = self.volume_of(&session)?;
        self.open(&session, id)?.forget()
    }

    fn volume_of(&self, session: &Session) -> Result<u32> {
        session.pool.volume_id(&session.dm, self.volume)
    }

    fn open<'s>(&self, session: &'s Session, id: u32) -> Result<Replication<'s>> {
        Replication::new(session, id, self.to, self.sending.level, self.patience)
    }

    fn take_turns(
        &self,
        global: &Global,
        session: &Session,
        id: u32,
        turns: &mut Option<u64>,
    ) -> Result<End> {
        let mut replication = self.open(session, id)?;
        loop {
            if !replication.is_current() {
                return Ok(End::Anew(Duration::ZERO));
            }
            let begun = Instant::now();
            let progress = global.progress("replicate");
            let result = replication.turn(&|output| self.sending.limit(output), &mut |total, n| {
                update(&progress, total, n);
            });
            drop(progress);
            let every = match result {
                Ok(sent) => {
                    global.print(&sent, |f| match &sent {
                        Some(sent) if sent.whole => {
                            writeln!(f, "{} bytes sent, the whole volume", sent.data)
                        }
                        Some(sent) => writeln!(f, "{} bytes sent", sent.data),
                        None => writeln!(f, "nothing has changed"),
                    })?;
                    if is_last(turns) {
                        return Ok(End::Done);
                    }
                    match sent {
                        Some(_) => self.every,
                        None => self.every.max(PAUSE),
                    }
                }
                Err(e) => {
                    end_turn(turns, e)?;
                    let pause = self.every.max(PAUSE);
                    if session.has_suspended() {
                        return Ok(End::Anew(pause));
                    }
                    pause
                }
            };
            signals::sleep(every.saturating_sub(begun.elapsed()))?;
        }
    }
}

/// A turn is over; whether it was the last one.
fn is_last(turns: &mut Option<u64>) -> bool {
    if let Some(left) = turns {
        *left = left.saturating_sub(1);
    }
    *turns == Some(0)
}

/// A turn has failed, which is told, unless nobody will try again.
fn end_turn(turns: &mut Option<u64>, e: Error) -> Result {
    if is_last(turns) || matches!(e, Error::Interrupted(_)) {
        return Err(e);
    }
    tell(format_args!("{e}; the next turn tries again"));
    Ok(())
}
