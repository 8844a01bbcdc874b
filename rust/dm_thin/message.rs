// SPDX-License-Identifier: GPL-2.0

//! Messages to a pool.

use dm::{
    args::{
        parse_u64,
        same_word, //
    },
    Args, //
};
use kernel::{
    prelude::*,
    str::CStr,
    sync::Arc, //
};
use thin_metadata::{
    DeviceId,
    Metadata, //
};

use crate::{
    block_manager::BufioManager,
    pool::Pool,
    LOG_PREFIX, //
};

/// A message, with its arguments understood.
enum Command {
    CreateThin(DeviceId),
    CreateSnap { id: DeviceId, origin: DeviceId },
    Delete(DeviceId),
    SetTransactionId { current: u64, new: u64 },
    ReserveMetadataSnap,
    ReleaseMetadataSnap,
}

/// Does what a message says, and commits.
///
/// Errors: [`EOPNOTSUPP`] if the metadata cannot be changed in the pool's mode; [`EINVAL`] for unknown messages,
/// wrong arguments, another transaction id, and a release without a metadata snapshot; [`EEXIST`] and
/// [`ENODATA`] for ids that are in use or not; [`EBUSY`] for the deletion of an active device and a second
/// metadata snapshot; and what the metadata device gives.
pub(crate) fn handle(pool: &Arc<Pool>, args: Args<'_>) -> Result {
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
        let result = command.run(pool, &mut locked.metadata);
        match result {
            Err(_) if locked.metadata.needs_abort() && was_clean => {
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

    fn run(&self, pool: &Pool, metadata: &mut Metadata<BufioManager>) -> thin_metadata::Result {
        match *self {
            Self::CreateThin(id) => metadata.create_thin(id),
            Self::CreateSnap { id, origin } => metadata.create_snap(id, origin),
            Self::Delete(id) => metadata.delete_thin(id),
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
