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
    pool::{
        Pool,
        PoolMetadata, //
    },
    reclaim::Progress,
    LOG_PREFIX, //
};

/// Asks how many data blocks of deleted thin devices are still to be discarded, and how many were since the pool
/// was made. The C implementation has no such thing.
const DISCARD_PROGRESS: &CStr = c"discard_progress";

/// A message, with its arguments understood.
enum Command {
    CreateThin(DeviceId),
    CreateSnap { id: DeviceId, origin: DeviceId },
    Delete(DeviceId),
    SetTransactionId { current: u64, new: u64 },
    ReserveMetadataSnap,
    ReleaseMetadataSnap,
}

/// Does what a message says, and commits; or answers it.
///
/// Errors: [`EOPNOTSUPP`] if the metadata cannot be changed in the pool's mode; [`EINVAL`] for unknown messages,
/// wrong arguments, another transaction id, and a release without a metadata snapshot; [`EEXIST`] and
/// [`ENODATA`] for ids that are in use or not; [`EBUSY`] for the deletion of an active device and a second
/// metadata snapshot; and what the metadata device gives.
pub(crate) fn handle(pool: &Arc<Pool>, msg: &mut Message<'_>) -> Result {
    let args = msg.args();
    if args.len() == 1
        && args
            .get(0)
            .is_some_and(|word| same_word(word, DISCARD_PROGRESS))
    {
        let Progress { pending, discarded } = pool.metadata.read().reclaim.progress();
        return write!(msg.reply(), "{pending} {discarded}").map_err(|_| EINVAL);
    }
    if !pool.mode().may_change_metadata() {
        dm::log::err!(
            LOG_PREFIX,
            "{}: unable to service pool target messages in READ_ONLY or FAIL mode",
            pool.name()
        );
        return Err(EOPNOTSUPP);
    }
    let command = Command::parse(pool, args)?;

    // With an empty transaction behind it, a message that fails half-way can be undone without loss of anything
    // else. A metadata snapshot is to show what was true before the message, too.
    let _ = pool.commit();
    let result = {
        let mut locked = pool.metadata.write_noio();
        let was_clean = !locked.metadata.needs_commit();
        let result = command.run(pool, &mut locked);
        match result {
            Err(_) if locked.metadata.needs_abort() && was_clean => {
                locked.reclaim.aborted();
                locked.metadata.abort().and(result)
            }
            result => result,
        }
    };
    match result {
        Ok(()) => {
            // A failure has changed the pool's mode, which is all that can be done about it.
            let _ = pool.commit();
            Ok(())
        }
        Err(e) => {
            dm::log::warn!(LOG_PREFIX, "{}: {command} failed: {e}", pool.name());
            let needs_abort = {
                let locked = pool.metadata.read();
                locked.metadata.needs_abort() || locked.metadata.is_failed()
            };
            if needs_abort {
                pool.metadata_operation_failed("message", e);
            }
            Err(e.into())
        }
    }
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
        } else if same_word(word, c"delete") {
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
        let PoolMetadata {
            metadata, reclaim, ..
        } = locked;
        match *self {
            Self::Delete(id) => {
                let discards = pool.discards_on_delete();
                metadata.delete_thin(id, &mut |freed| {
                    if discards {
                        reclaim.note(freed.block);
                    }
                })
            }
            Self::CreateThin(id) => metadata.create_thin(id),
            Self::CreateSnap { id, origin } => metadata.create_snap(id, origin),
            Self::SetTransactionId { current, new } => metadata.set_transaction_id(current, new),
            Self::ReserveMetadataSnap => metadata.reserve_metadata_snap(|| pool.flush_data()),
            Self::ReleaseMetadataSnap => metadata.release_metadata_snap(),
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
