// SPDX-License-Identifier: GPL-2.0

//! Module parameters that user space reads and writes under `/sys/module`.

use crate::bindings;
use core::cell::UnsafeCell;
use kernel::{
    ffi::{
        c_uint,
        c_void, //
    },
    str::{
        as_char_ptr_in_const_context,
        CStr, //
    },
};

/// An unsigned number that is a module parameter; see [`uint_param!`](crate::uint_param).
#[repr(transparent)]
pub struct UintParam(UnsafeCell<c_uint>);

// SAFETY: All accesses are single reads and writes of a machine word.
unsafe impl Sync for UintParam {}

impl UintParam {
    /// A parameter with its default.
    pub const fn new(default: u32) -> Self {
        Self(UnsafeCell::new(default))
    }

    /// The value now.
    #[inline]
    pub fn get(&self) -> u32 {
        // SAFETY: Valid; user space may change it at any time, hence the volatile read.
        unsafe { self.0.get().read_volatile() }
    }

    pub(crate) const fn as_ptr(&self) -> *mut c_uint {
        self.0.get()
    }
}

/// What has a [`UintParam`] in it, for [`uint_param!`](crate::uint_param).
#[doc(hidden)]
#[repr(transparent)]
pub struct Record(bindings::kernel_param);

// SAFETY: Nobody but the kernel's module code uses it, which serialises that.
unsafe impl Sync for Record {}

impl Record {
    /// What the kernel must know of a parameter, to be put into the section `__param`.
    pub const fn new(name: &'static CStr, value: &'static UintParam) -> Self {
        Self(bindings::kernel_param {
            name: as_char_ptr_in_const_context(name),
            mod_: (&raw const bindings::__this_module).cast_mut(),
            ops: &raw const bindings::param_ops_uint,
            perm: 0o644,
            level: -1,
            flags: 0,
            __bindgen_anon_1: bindings::kernel_param__bindgen_ty_1 {
                arg: value.as_ptr().cast::<c_void>(),
            },
        })
    }
}

/// Declares a module parameter of type `unsigned int`, readable by all and writable by root.
///
/// `$value` is an expression for a `&'static UintParam`, which keeps the default until the
/// parameter is set. Name, value and description:
///
/// ```ignore
/// static TIMEOUT: UintParam = UintParam::new(60);
/// dm::uint_param!(timeout, &TIMEOUT, "Timeout in seconds");
/// ```
#[macro_export]
macro_rules! uint_param {
    ($name:ident, $value:expr, $description:literal) => {
        const _: () = {
            #[link_section = "__param"]
            #[used]
            static RECORD: $crate::params::Record =
                $crate::params::Record::new(::kernel::c_str!(::core::stringify!($name)), $value);

            #[link_section = ".modinfo"]
            #[used]
            static TYPE: [u8; $crate::params::TYPE.len() + ::core::stringify!($name).len() + 6] =
                $crate::params::join(&[
                    $crate::params::TYPE,
                    ::core::stringify!($name).as_bytes(),
                    b":uint\0",
                ]);

            #[link_section = ".modinfo"]
            #[used]
            static DESCRIPTION: [u8; $crate::params::PARM.len()
                + ::core::stringify!($name).len()
                + 1
                + $description.len()
                + 1] = $crate::params::join(&[
                $crate::params::PARM,
                ::core::stringify!($name).as_bytes(),
                b":",
                $description.as_bytes(),
                b"\0",
            ]);
        };
    };
}

/// What `modinfo` expects before a parameter's type.
#[doc(hidden)]
pub const TYPE: &[u8] = b"parmtype=";
/// What `modinfo` expects before a parameter's description.
#[doc(hidden)]
pub const PARM: &[u8] = b"parm=";

/// Joins byte strings, whose lengths must add up to `N`.
#[doc(hidden)]
pub const fn join<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut out = [0; N];
    let (mut i, mut n) = (0, 0);
    while i < parts.len() {
        let mut j = 0;
        while j < parts[i].len() {
            out[n] = parts[i][j];
            n += 1;
            j += 1;
        }
        i += 1;
    }
    assert!(n == N);
    out
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_params)]
mod tests {
    use super::*;

    #[test]
    fn has_its_default() {
        assert_eq!(UintParam::new(60).get(), 60);
    }

    #[test]
    fn joins() {
        assert!(join::<5>(&[b"ab", b"", b"cde"]) == *b"abcde");
    }
}
