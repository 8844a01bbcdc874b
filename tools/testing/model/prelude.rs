// SPDX-License-Identifier: GPL-2.0

//! As much of `kernel::prelude` as is needed.

pub(crate) use pinned_init::{
    pin_data,
    pin_init,
    pinned_drop,
    try_pin_init,
    PinInit, //
};
pub(crate) use std::pin::Pin;

/// What has failed.
#[derive(Debug, PartialEq)]
pub(crate) enum Error {
    Busy,
    Invalid,
    NoMemory,
}

pub(crate) use Error::{
    Busy as EBUSY,
    Invalid as EINVAL,
    NoMemory as ENOMEM, //
};

pub(crate) use crate::alloc::{
    flags::GFP_KERNEL,
    KVec, //
};

pub(crate) type Result<T = (), E = Error> = std::result::Result<T, E>;

impl From<std::convert::Infallible> for Error {
    fn from(e: std::convert::Infallible) -> Self {
        match e {}
    }
}
