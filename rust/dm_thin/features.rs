// SPDX-License-Identifier: GPL-2.0

//! The optional features of a pool.

use core::fmt::{
    self,
    Write, //
};

use dm::{
    args::same_word,
    Args,
    Ctr, //
};
use kernel::prelude::*;

/// What a pool's table asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Features {
    /// Blocks are zeroed before their first use.
    pub(crate) zero_new_blocks: bool,
    /// Thin devices support discards.
    pub(crate) discard_enabled: bool,
    /// Discards of blocks that nobody uses any more go on to the data device.
    pub(crate) discard_passdown: bool,
    /// Metadata is not changed.
    pub(crate) read_only: bool,
    /// Writes that find no free block fail at once instead of waiting for more space.
    pub(crate) error_if_no_space: bool,
    /// The space of deleted thin devices goes back to the data device. The C implementation has no such thing.
    pub(crate) discard_on_delete: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            zero_new_blocks: true,
            discard_enabled: true,
            discard_passdown: true,
            read_only: false,
            error_if_no_space: false,
            discard_on_delete: false,
        }
    }
}

impl Features {
    /// The most features of a table: four, as with the C implementation, and our own.
    const MAX: u32 = 5;
    const DISCARD_ON_DELETE: &'static CStr = c"discard_on_delete";

    /// Parses `[<#feature args> [<arg>]*]`.
    pub(crate) fn parse(ctr: &mut Ctr<'_>, args: &mut Args<'_>) -> Result<Self> {
        let mut features = Self::default();
        if args.is_empty() {
            return Ok(features);
        }

        let mut group = args
            .read_group(0, Self::MAX)
            .map_err(|e| ctr.error(c"Invalid number of pool feature arguments", e))?;
        let has_addition = (0..group.len())
            .filter_map(|i| group.get(i))
            .any(|arg| same_word(arg, Self::DISCARD_ON_DELETE));
        if group.len() == Self::MAX as usize && !has_addition {
            return Err(ctr.error(c"Invalid number of pool feature arguments", EINVAL));
        }
        while let Some(arg) = group.shift() {
            if same_word(arg, c"skip_block_zeroing") {
                features.zero_new_blocks = false;
            } else if same_word(arg, c"ignore_discard") {
                features.discard_enabled = false;
            } else if same_word(arg, c"no_discard_passdown") {
                features.discard_passdown = false;
            } else if same_word(arg, c"read_only") {
                features.read_only = true;
            } else if same_word(arg, c"error_if_no_space") {
                features.error_if_no_space = true;
            } else if same_word(arg, Self::DISCARD_ON_DELETE) {
                features.discard_on_delete = true;
            } else {
                return Err(ctr.error(c"Unrecognised pool feature requested", EINVAL));
            }
        }
        Ok(features)
    }

    /// Writes the features as a table line has them, each word followed by a space.
    pub(crate) fn emit(&self, out: &mut dyn Write) -> fmt::Result {
        let words = [
            (!self.zero_new_blocks, "skip_block_zeroing"),
            (!self.discard_enabled, "ignore_discard"),
            (!self.discard_passdown, "no_discard_passdown"),
            (self.read_only, "read_only"),
            (self.error_if_no_space, "error_if_no_space"),
            (self.discard_on_delete, "discard_on_delete"),
        ];
        write!(out, "{} ", words.iter().filter(|(on, _)| *on).count())?;
        for (_, word) in words.iter().filter(|(on, _)| *on) {
            write!(out, "{word} ")?;
        }
        Ok(())
    }
}
