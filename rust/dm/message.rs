// SPDX-License-Identifier: GPL-2.0

//! Messages of `dmsetup message` and their replies.

use crate::{
    Args,
    Output, //
};
use kernel::prelude::*;

/// A message to a target.
///
/// The reply goes to the very buffer that the arguments lie in, so starting it ends their use; the
/// borrow checker sees to it.
pub struct Message<'a> {
    args: Args<'a>,
    result: *mut c_char,
    maxlen: c_uint,
    replied: bool,
}

impl<'a> Message<'a> {
    /// # Safety
    ///
    /// `args` must stay valid until [`Message::reply`] is called, `result` must be valid for writes
    /// of `maxlen` bytes for `'a`.
    pub(crate) unsafe fn new(args: Args<'a>, result: *mut c_char, maxlen: c_uint) -> Self {
        Self {
            args,
            result,
            maxlen,
            replied: false,
        }
    }

    /// The arguments, the first one is the message's name; none once a reply was started.
    pub fn args(&self) -> Args<'_> {
        self.args
    }

    /// Starts the reply; it replaces an earlier one.
    pub fn reply(&mut self) -> Output<'_> {
        self.args = Args::none();
        self.replied = true;
        // SAFETY: By the requirements of `new`. The arguments, which may overlap the buffer, are
        // not borrowed any longer as this takes `&mut self`, and are gone from `self`.
        unsafe { Output::new(self.result, self.maxlen) }
    }

    /// Whether there is a reply.
    pub(crate) fn replied(&self) -> bool {
        self.replied
    }
}
