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

    /// Changes the value.
    pub fn set(&self, value: u32) {
        // SAFETY: Valid, and only accessed as a whole.
        unsafe { self.0.get().write_volatile(value) };
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
            #[cfg(MODULE)]
            mod_: (&raw const bindings::__this_module).cast_mut(),
            #[cfg(not(MODULE))]
            mod_: core::ptr::null_mut(),
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
/// Module and name as on the kernel's command line, a description, and an expression for a
/// `&'static UintParam`, which keeps the default until the parameter is set:
///
/// ```ignore
/// static TIMEOUT: UintParam = UintParam::new(60);
/// dm::uint_param!(my_module.timeout, &TIMEOUT, "Timeout in seconds");
/// ```
#[macro_export]
macro_rules! uint_param {
    ($module:ident.$name:ident, $value:expr, $description:literal) => {
        const _: () = {
            // For a module the name alone, as the kernel knows already which one is being loaded.
            #[cfg(MODULE)]
            const NAME: &::kernel::str::CStr = ::kernel::c_str!(::core::stringify!($name));
            #[cfg(not(MODULE))]
            const NAME: &::kernel::str::CStr = ::kernel::c_str!(::core::concat!(
                ::core::stringify!($module),
                ".",
                ::core::stringify!($name)
            ));

            #[link_section = "__param"]
            #[used]
            static RECORD: $crate::params::Record = $crate::params::Record::new(NAME, $value);
        };

        $crate::modinfo!($module, "parmtype=", ::core::stringify!($name), ":uint");
        $crate::modinfo!(
            $module,
            "parm=",
            ::core::stringify!($name),
            ":",
            $description
        );
    };
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_params)]
mod tests {
    use super::*;

    #[test]
    fn has_its_default() {
        assert_eq!(UintParam::new(60).get(), 60);
    }
}
