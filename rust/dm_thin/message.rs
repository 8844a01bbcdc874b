// SPDX-License-Identifier: GPL-2.0

//! Messages to a pool.

use core::fmt::Write as _;

use dm::{
    args::{
        parse_u64,
        same_word, //
    },
    Args,
    Message, //
};
use kernel::{
    prelude::*,
    str::CStr,
    sync::Arc, //
};
use thin_metadata::DeviceId;

use crate::{
    cache_pages::Usage,
    mode::Mode,
    pool::Pool,
    pool_metadata::PoolMetadata,
    reclaim::Progress,
    LOG_PREFIX, //
};

/// Asks how many data blocks of deleted thin devices are still to be discarded, and how many were since the pool
/// was made. The C implementation has no such thing.
const DISCARD_PROGRESS: &CStr = c"discard_progress";

/// Asks how much is kept of mappings in memory: pages of this pool, the most pages of all pools, mappings in this
/// pool's pages, and the bytes that these take. The C implementation has no such thing.
const CACHE_STATS: &CStr = c"cache_stats";

/// The message that works also while the pool is out of metadata space.
const DELETE: &CStr = c"delete";

/// A message, with its arguments understood.
enum Command {
    CreateThin(DeviceId),
    CreateSnap { id: DeviceId, origin: DeviceId },
    Delete(DeviceId),
    SetTransactionId { current: u64, new: u64 },
    ReserveMetadataSnap,
    ReleaseMetadataSnap,
}

/// Does what a message says, and commits; or answers it. What it says is stable if there is no error.
///
/// Errors: [`EOPNOTSUPP`] if the metadata cannot be changed in the pool's mode, except by a deletion where metadata
/// space is all that lacks; [`EINVAL`] for unknown messages,
/// wrong arguments, another transaction id, and a release without a metadata snapshot; [`EEXIST`] and
/// [`ENODATA`] for ids that are in use or not; [`EBUSY`] for the deletion of an active device and a second
/// metadata snapshot; and what the metadata device gives.
pub(crate) fn handle(pool: &Arc<Pool>, msg: &mut Message<'_>) -> Result {
    let args = msg.args();
    let asks_for = |what| args.len() == 1 && args.get(0).is_some_and(|word| same_word(word, what));
    if asks_for(DISCARD_PROGRESS) {
        let Progress { pending, discarded } = pool.metadata.read().reclaim.progress();
        return write!(msg.reply(), "{pending} {discarded}").map_err(|_| EINVAL);
    }
    if asks_for(CACHE_STATS) {
        let Usage {
            pages,
            limit,
            mappings,
            bytes,
        } = pool.caches.usage();
        return write!(
            msg.reply(),
            "pages={pages} limit={limit} mappings={mappings} bytes={bytes}"
        )
        .map_err(|_| EINVAL);
    }
    let asks_for_delete = args.get(0).is_some_and(|word| same_word(word, DELETE));
    match pool.mode() {
        Mode::Write | Mode::OutOfDataSpace => {}
        Mode::OutOfMetadataSpace if asks_for_delete => {}
        Mode::OutOfMetadataSpace | Mode::ReadOnly | Mode::Fail => {
            dm::log::err!(
                LOG_PREFIX,
                "{}: unable to service pool target messages in READ_ONLY or FAIL mode",
                pool.name()
            );
            return Err(EOPNOTSUPP);
        }
    }
    let command = Command::parse(pool, args)?;
    let result = match command {
        Command::Delete(id) if pool.mode() == Mode::OutOfMetadataSpace => {
            match pool.delete_from_reserve(id) {
                // Another deletion has made an end of that mode.
                Err(thin_metadata::Error::ReadOnly) if pool.mode() == Mode::Write => {
                    run(pool, &command)
                }
                result => result,
            }
        }
        _ => run(pool, &command),
    };
    result.map_err(|e| {
        dm::log::warn!(LOG_PREFIX, "{}: {command} failed: {e}", pool.name());
        e.into()
    })
}

/// Runs a command, and commits.
fn run(pool: &Arc<Pool>, command: &Command) -> thin_metadata::Result {
    let mut changes = pool.changes();
    // With an empty transaction behind it, a message that fails half-way can be undone without loss of anything else.
    let before = changes.commit();
    if before.result.is_err() {
        drop(changes);
        return pool.after_commit(before).map(drop);
    }

    let mut locked = changes.write();
    locked.in_service = true;
    let free_before = locked.metadata.free_data_blocks().ok();
    let mut result = command.run(pool, &mut locked);
    if result.is_err() && locked.metadata.needs_abort() {
        result = locked.undo().and(result);
    }
    if let Err(e) = result {
        let given_up = match locked.metadata.is_failed() {
            true => locked.give_up(),
            false => None,
        };
        drop(locked);
        drop(changes);
        let _ = pool.after_commit(before);
        if given_up.is_some() {
            pool.operation_failed("message", e, given_up);
        }
        return Err(e);
    }
    let has_freed = free_before < locked.metadata.free_data_blocks().ok();
    drop(locked);
    // Before anybody else adds to the transaction, or gives it up.
    let end = changes.commit();
    drop(changes);
    if before.low {
        pool.report_low_metadata();
    }
    let result = pool.after_commit(end).map(drop);
    if has_freed {
        pool.wake();
    }
    result
}

impl Command {
    fn parse(pool: &Pool, mut args: Args<'_>) -> Result<Self> {
        let count = args.len();
        let word = args.shift().ok_or(EINVAL)?;
        let complain = |what: core::fmt::Arguments<'_>| {
            dm::log::warn!(LOG_PREFIX, "{}: {what}", pool.name());
            EINVAL
        };
        let words = |wanted: usize| match count == wanted {
            true => Ok(()),
            false => Err(complain(format_args!(
                "message received with {count} arguments instead of {wanted}"
            ))),
        };
        let number = |args: &mut Args<'_>, what: &str| {
            let arg = args.shift().ok_or(EINVAL)?;
            parse_u64(arg).map_err(|_| complain(format_args!("{what} is no number: {}", Word(arg))))
        };
        let id = |args: &mut Args<'_>| {
            let number = number(args, "device id")?;
            DeviceId::try_from(number).map_err(|e| complain(format_args!("{e}")))
        };

        if same_word(word, c"create_thin") {
            words(2)?;
            Ok(Self::CreateThin(id(&mut args)?))
        } else if same_word(word, c"create_snap") {
            words(3)?;
            Ok(Self::CreateSnap {
                id: id(&mut args)?,
                origin: id(&mut args)?,
            })
        } else if same_word(word, DELETE) {
            words(2)?;
            Ok(Self::Delete(id(&mut args)?))
        } else if same_word(word, c"set_transaction_id") {
            words(3)?;
            Ok(Self::SetTransactionId {
                current: number(&mut args, "transaction id")?,
                new: number(&mut args, "new transaction id")?,
            })
        } else if same_word(word, c"reserve_metadata_snap") {
            words(1)?;
            Ok(Self::ReserveMetadataSnap)
        } else if same_word(word, c"release_metadata_snap") {
            words(1)?;
            Ok(Self::ReleaseMetadataSnap)
        } else {
            Err(complain(format_args!(
                "unrecognised message received: {}",
                Word(word)
            )))
        }
    }

    fn run(&self, pool: &Pool, locked: &mut PoolMetadata) -> thin_metadata::Result {
        let metadata = &mut locked.metadata;
        match *self {
            Self::Delete(id) => locked.delete_thin(id, pool.discards_on_delete()),
            Self::CreateThin(id) => metadata.create_thin(id),
            Self::CreateSnap { id, origin } => locked.create_snap(id, origin),
            Self::SetTransactionId { current, new } => metadata.set_transaction_id(current, new),
            Self::ReserveMetadataSnap => metadata.reserve_metadata_snap(|| pool.flush_data()),
            Self::ReleaseMetadataSnap => locked.release_metadata_snap(),
        }
    }
}

impl kernel::fmt::Display for Command {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::CreateThin(id) => write!(f, "create_thin {id}"),
            Self::CreateSnap { id, origin } => write!(f, "create_snap {id} {origin}"),
            Self::Delete(id) => write!(f, "delete {id}"),
            Self::SetTransactionId { current, new } => {
                write!(f, "set_transaction_id {current} {new}")
            }
            Self::ReserveMetadataSnap => f.write_str("reserve_metadata_snap"),
            Self::ReleaseMetadataSnap => f.write_str("release_metadata_snap"),
        }
    }
}

/// A word of a user's, for a log line.
struct Word<'a>(&'a CStr);

impl core::fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.0.to_str().unwrap_or("?"))
    }
}
