// SPDX-License-Identifier: GPL-2.0

//! Sending a volume again and again to a program that receives it.
//!
//! The last snapshot that both sides have is kept, so that the next turn sends only what has changed since. A snapshot
//! that was sent without an answer is kept, too, and sent again first: whoever has it already says so.

use std::{
    io::Write,
    time::Duration, //
};

use serde::{
    Deserialize,
    Serialize, //
};

use crate::{
    anchors::{
        self,
        Anchors, //
    },
    error::{
        Error,
        Result, //
    },
    home::{
        self,
        Home,
        Lock, //
    },
    kept::{
        Kept,
        Owner, //
    },
    naming::is_unchanged,
    numbering,
    pool::Pool,
    program::Program,
    send::{
        plan,
        send,
        Request, //
    },
    session::Session,
};

/// The snapshots that a replication goes on from.
#[derive(Serialize, Deserialize)]
struct Snapshots {
    /// The volume.
    volume: u32,
    /// What it is sent to.
    command: String,
    /// Both sides have it.
    common: Option<u32>,
    /// The other side may have it.
    pending: Option<u32>,
    /// Of no use any more.
    before: Option<u32>,
}

/// A volume that is replicated.
pub struct Replication<'a> {
    session: &'a Session,
    level: i32,
    patience: Duration,
    file: String,
    snapshots: Snapshots,
    _lock: Lock,
}

/// What a turn has done.
#[derive(Debug, Serialize)]
pub struct Turn {
    /// How many bytes of data were sent, with those of a turn that failed before.
    pub data: u64,
    /// Whether the whole volume was sent, and not only what has changed.
    pub whole: bool,
}

/// Where a stream goes: wraps the pipe, for instance to limit the rate.
pub type Wrap<'a> = &'a dyn Fn(Box<dyn Write>) -> Box<dyn Write>;

impl<'a> Replication<'a> {
    /// Replicates volume `id` by the shell command `command`, which gets a stream as its input, and is given up when it
    /// takes nothing for as long as `patience`.
    pub fn new(
        session: &'a Session,
        id: u32,
        command: &str,
        level: i32,
        patience: Duration,
    ) -> Result<Self> {
        let key = format!("{id}-{}", home::key(command.as_bytes()));
        let lock = anchors::lock::<Snapshots>(&session.home, &key)?;
        let file = anchors::file::<Snapshots>(&key);
        let snapshots = session.home.load(&file)?.unwrap_or_else(|| Snapshots {
            volume: id,
            command: command.to_owned(),
            common: None,
            pending: None,
            before: None,
        });
        Ok(Self {
            session,
            level,
            patience,
            snapshots,
            file,
            _lock: lock,
        })
    }

    /// Whether the pool is still what it was when the session began: the same device with the same disks.
    pub fn is_current(&self) -> bool {
        let pool = &self.session.pool;
        // That it is not there at all is told by the next turn.
        Pool::find(&self.session.dm, &pool.name).map_or(true, |now| now == *pool)
    }

    /// Sends what has changed; `None` if nothing has. `progress` is told of how much there is to send, and of each piece of data.
    pub fn turn(
        &mut self,
        wrap: Wrap<'_>,
        progress: &mut dyn FnMut(Option<u64>, u64),
    ) -> Result<Option<Turn>> {
        if let Some(before) = self.snapshots.before {
            self.session.delete(before)?;
            self.snapshots.before = None;
        }
        for known in [&mut self.snapshots.common, &mut self.snapshots.pending] {
            if let Some(id) = *known {
                if !self.session.exists(id)? {
                    *known = None;
                }
            }
        }
        let late = match self.snapshots.pending {
            Some(_) => Some(self.send_pending(wrap, progress)?),
            None => None,
        };
        if let Some(common) = self.snapshots.common {
            if is_unchanged(self.session, self.snapshots.volume, common)? {
                return Ok(late);
            }
        }
        numbering::check(self.session)?;
        let snapshot = self.session.snapshot(self.snapshots.volume)?;
        self.snapshots.pending = Some(snapshot);
        self.session.keep(snapshot, || self.store())?;
        let turn = self.send_pending(wrap, progress)?;
        let (data, whole) = late.map_or((0, false), |late| (late.data, late.whole));
        Ok(Some(Turn {
            data: turn.data.saturating_add(data),
            whole: turn.whole || whole,
        }))
    }

    fn send_pending(
        &mut self,
        wrap: Wrap<'_>,
        progress: &mut dyn FnMut(Option<u64>, u64),
    ) -> Result<Turn> {
        let Snapshots {
            volume,
            ref command,
            common,
            pending,
            ..
        } = self.snapshots;
        let Some(pending) = pending else {
            return Err(Error::NotFound("there is nothing to send".to_owned()));
        };
        // Where its last block is cut off, a volume that becomes larger would have something without a change.
        let block_size = self.session.pool.block_size;
        let size = self
            .session
            .active_size(volume)?
            .map(|size| size.div_ceil(block_size).saturating_mul(block_size));
        let plan = plan(
            self.session,
            &Request {
                id: pending,
                from: common,
                size: size.unwrap_or(0),
                is_old_size: false,
                resume: None,
            },
        )?;
        let data = plan.header.data;
        progress(Some(data), 0);
        let (program, input) = Program::start(command, self.patience)?;
        let sent = send(self.session, plan, wrap(Box::new(input)), self.level, |n| {
            progress(None, n);
        });
        program.end(sent)?;

        self.snapshots.before = self.snapshots.common.replace(pending);
        self.snapshots.pending = None;
        // It is noted as one of this session if the first note of it here has failed.
        self.session.keep(pending, || self.store())?;
        if let Some(before) = self.snapshots.before {
            self.session.delete(before)?;
            self.snapshots.before = None;
        }
        Ok(Turn {
            data,
            whole: common.is_none(),
        })
    }

    fn store(&self) -> Result {
        self.session.home.store(&self.file, &self.snapshots)
    }

    /// Deletes the snapshots that were kept. The next turn sends the whole volume.
    pub fn forget(self) -> Result {
        if self.session.home.load::<Snapshots>(&self.file)?.is_none() {
            let pool = &self.session.pool.name;
            return Err(Error::NotFound(format!(
                "nothing is kept of volume {} for this command; `thinctl kept {pool}` lists what is kept, and for which",
                self.snapshots.volume
            )));
        }
        for snapshot in self.snapshots.ids() {
            self.session.delete(snapshot)?;
        }
        self.session.home.remove(&self.file)
    }
}

impl Anchors for Snapshots {
    const OWNER: Owner = Owner::Replicate;
    const BUSY: &str = "another thinctl is at this replication";

    fn volume(&self) -> u32 {
        self.volume
    }

    fn place(&self) -> String {
        self.command.clone()
    }

    fn ids(&self) -> Vec<u32> {
        let Self {
            common,
            pending,
            before,
            ..
        } = *self;
        common.into_iter().chain(pending).chain(before).collect()
    }

    fn remove(&mut self, id: u32) {
        for known in [&mut self.common, &mut self.pending, &mut self.before] {
            known.take_if(|known| *known == id);
        }
    }
}

/// The snapshots that replications go on from.
pub fn kept(home: &Home) -> Result<Vec<Kept>> {
    anchors::kept::<Snapshots>(home)
}

/// Deletes one of them. If both sides had it, the next turn sends the whole volume.
pub fn forget(session: &Session, snapshot: u32) -> Result {
    anchors::forget::<Snapshots>(session, snapshot)
}
