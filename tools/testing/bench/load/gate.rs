// SPDX-License-Identifier: GPL-2.0

//! The `gate` target: passes everything on to a device, but makes what it is told to wait, or fail.
//!
//! ```text
//! gate <device>
//! ```
//!
//! Tests say with it in which order things happen, so that nothing depends on how long they take. The messages:
//!
//! ```text
//! hold <kind>...    What comes of these kinds waits.
//! fail <kind>...    What comes of these kinds fails.
//! release <n>       As many of those that wait go on, the oldest first, or fail if their kind does by now.
//! pass [<kind>...]  Nothing of these kinds, or at all, waits any more, nor fails.
//! ```
//!
//! The kinds are `read`, `write`, `flush`, `discard`, `zeroes` and `undo`: the undoing of a suspend that was broken off
//! waits while that is held. A suspend lets go what waits.
//!
//! The status line tells how many wait of each kind, and at its end whether a suspend is under way.

use core::fmt::{
    self,
    Write as _, //
};

use dm::{
    Args,
    Bio,
    BioList,
    BlkStatus,
    Ctr,
    Dev,
    EachDevice,
    Features,
    Map,
    Message,
    Mode,
    Op,
    Output,
    StatusFlags,
    StatusKind,
    Stop,
    Target, //
};
use kernel::{
    prelude::*,
    str::CStr,
    sync::{
        atomic::{
            AtomicFlag,
            Relaxed, //
        },
        new_spinlock_irq,
        SpinLockIrq, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

use crate::DmLoad;

/// What can be told to wait or to fail, in the order of the status line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    Zeroes,
    Undo,
}

impl Kind {
    /// What messages call them.
    const WORDS: [(&'static CStr, Self); 6] = [
        (c"read", Self::Read),
        (c"write", Self::Write),
        (c"flush", Self::Flush),
        (c"discard", Self::Discard),
        (c"zeroes", Self::Zeroes),
        (c"undo", Self::Undo),
    ];

    fn of(bio: &Bio<()>) -> Self {
        match bio.op() {
            Op::Discard | Op::SecureErase => Self::Discard,
            Op::WriteZeroes => Self::Zeroes,
            _ if bio.is_preflush() => Self::Flush,
            _ if bio.is_write() => Self::Write,
            _ => Self::Read,
        }
    }

    fn from_word(word: &CStr) -> Option<Self> {
        let found = Self::WORDS.iter().find(|(name, _)| *name == word)?;
        Some(found.1)
    }
}

/// How long the undoing of a suspend waits before it looks again whether it still has to.
const PATIENCE: Delta = Delta::from_millis(1);

/// What happens to what comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    Pass,
    Hold,
    Fail,
}

struct State {
    /// By kind.
    rules: [Rule; Kind::WORDS.len()],
    /// The bios that wait, the oldest first.
    held: BioList<()>,
}

impl State {
    fn rule(&self, kind: Kind) -> Rule {
        self.rules.get(kind as usize).copied().unwrap_or(Rule::Pass)
    }

    fn set_rule(&mut self, kind: Kind, rule: Rule) {
        if let Some(place) = self.rules.get_mut(kind as usize) {
            *place = rule;
        }
    }

    /// Takes the bio that has waited longest. Says whether it is to fail.
    fn take(&mut self) -> Option<(Bio<()>, bool)> {
        let bio = self.held.pop()?;
        let fails = self.rule(Kind::of(&bio)) == Rule::Fail;
        Some((bio, fails))
    }

    /// Has everything of a kind pass, and takes what waits.
    fn pass(&mut self, kind: Kind) -> BioList<()> {
        self.set_rule(kind, Rule::Pass);
        let (mut taken, mut left) = (BioList::new(), BioList::new());
        while let Some(bio) = self.held.pop() {
            match Kind::of(&bio) == kind {
                true => taken.push(bio),
                false => left.push(bio),
            }
        }
        self.held = left;
        taken
    }
}

/// A table of the target.
#[pin_data]
pub(crate) struct GateTarget {
    dev: Dev,
    len: u64,
    #[pin]
    state: SpinLockIrq<State>,
    /// Whether a suspend is under way.
    suspends: AtomicFlag,
    /// Whether the undoing of a suspend waits.
    undoes: AtomicFlag,
}

/// Calls `f` for each of the kinds in `args`, one at least.
fn kinds(mut args: Args<'_>, f: impl Fn(Kind)) -> Result {
    if args.is_empty() {
        return Err(EINVAL);
    }
    while let Some(word) = args.shift() {
        f(Kind::from_word(word).ok_or(EINVAL)?);
    }
    Ok(())
}

impl GateTarget {
    /// Has nothing of a kind wait any more, nor fail.
    fn pass(&self, kind: Kind) {
        let mut taken = self.state.lock().pass(kind);
        while let Some(bio) = taken.pop() {
            bio.submit();
        }
    }

    /// How many bios of a kind wait.
    fn count(&self, kind: Kind) -> usize {
        let state = self.state.lock();
        state
            .held
            .iter()
            .filter(|bio| Kind::of(bio) == kind)
            .count()
    }

    fn holds_undo(&self) -> bool {
        self.state.lock().rule(Kind::Undo) == Rule::Hold
    }
}

#[vtable]
impl Target for GateTarget {
    const NAME: &'static CStr = c"gate";
    const VERSION: [u32; 3] = [1, 0, 0];
    const FEATURES: Features = Features::NONE;
    type Module = DmLoad;
    type PerBio = ();

    fn ctr(ctr: &mut Ctr<'_>, args: Args<'_>) -> Result<Pin<KBox<Self>>> {
        let (1, Some(path)) = (args.len(), args.get(0)) else {
            return Err(ctr.error(c"Invalid argument count", EINVAL));
        };
        let dev = ctr
            .get_device(path, Mode::READ_WRITE)
            .map_err(|e| ctr.error(c"Error opening device", e))?;
        ctr.set_num_flush_bios(1);
        ctr.set_num_discard_bios(1);
        ctr.set_num_write_zeroes_bios(1);
        let len = ctr.len();
        KBox::pin_init(
            pin_init!(Self {
                dev,
                len,
                state <- new_spinlock_irq!(
                    State {
                        rules: [Rule::Pass; Kind::WORDS.len()],
                        held: BioList::new(),
                    },
                    "dm_load::Gate"
                ),
                suspends: AtomicFlag::new(false),
                undoes: AtomicFlag::new(false),
            }),
            GFP_KERNEL,
        )
    }

    fn map(&self, mut bio: Bio<()>) -> Map<()> {
        let sector = bio.sector();
        bio.remap(&self.dev, sector);
        let mut state = self.state.lock();
        match state.rule(Kind::of(&bio)) {
            Rule::Hold => {
                state.held.push(bio);
                Map::Submitted
            }
            Rule::Fail => Map::Kill(bio),
            Rule::Pass => Map::Remapped(bio),
        }
    }

    fn presuspend(&self) {
        self.suspends.store(true, Relaxed);
        for (_, kind) in Kind::WORDS {
            if kind != Kind::Undo {
                self.pass(kind);
            }
        }
    }

    fn presuspend_undo(&self) {
        self.undoes.store(true, Relaxed);
        while self.holds_undo() {
            fsleep(PATIENCE);
        }
        self.undoes.store(false, Relaxed);
        self.suspends.store(false, Relaxed);
    }

    fn postsuspend(&self) {
        self.suspends.store(false, Relaxed);
    }

    fn message(&self, msg: &mut Message<'_>) -> Result {
        let mut args = msg.args();
        match args.shift() {
            Some(word) if word == c"hold" => {
                kinds(args, |kind| self.state.lock().set_rule(kind, Rule::Hold))
            }
            Some(word) if word == c"fail" => {
                kinds(args, |kind| self.state.lock().set_rule(kind, Rule::Fail))
            }
            Some(word) if word == c"release" => {
                for _ in 0..args.read(1, u32::MAX)? {
                    // The lock is not held when the bio ends.
                    let taken = self.state.lock().take();
                    match taken {
                        Some((bio, true)) => bio.end(BlkStatus::IOERR),
                        Some((bio, false)) => bio.submit(),
                        None => break,
                    }
                }
                Ok(())
            }
            Some(word) if word == c"pass" && args.is_empty() => {
                for (_, kind) in Kind::WORDS {
                    self.pass(kind);
                }
                Ok(())
            }
            Some(word) if word == c"pass" => kinds(args, |kind| self.pass(kind)),
            _ => Err(EINVAL),
        }
    }

    fn status(&self, kind: StatusKind, _flags: StatusFlags, out: &mut Output<'_>) -> fmt::Result {
        match kind {
            StatusKind::Info => {
                for (_, kind) in Kind::WORDS {
                    let count = match kind {
                        Kind::Undo => usize::from(self.undoes.load(Relaxed)),
                        kind => self.count(kind),
                    };
                    write!(out, "{count} ")?;
                }
                write!(out, "{}", usize::from(self.suspends.load(Relaxed)))
            }
            StatusKind::Table => write!(out, "{}", self.dev.number()),
            StatusKind::Ima => Ok(()),
        }
    }

    fn iterate_devices(&self, each: &mut EachDevice<'_>) -> Result<(), Stop> {
        each.call(&self.dev, 0, self.len)
    }
}
