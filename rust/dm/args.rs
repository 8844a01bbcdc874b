// SPDX-License-Identifier: GPL-2.0

//! Arguments of constructors and messages, parsed exactly as C does.

use crate::bindings;
use kernel::{
    error::to_result,
    prelude::*,
    str::CStr, //
};

/// The arguments of a constructor or a message; taking one moves on to the next.
#[derive(Clone, Copy)]
pub struct Args<'a>(&'a [*mut c_char]);

impl<'a> Args<'a> {
    /// # Safety
    ///
    /// `argv` must be an array of `argc` C strings, all valid and unchanged for `'a`; it may be
    /// null if `argc` is zero.
    pub(crate) unsafe fn new(argc: c_uint, argv: *mut *mut c_char) -> Self {
        if argc == 0 || argv.is_null() {
            return Self(&[]);
        }
        // SAFETY: By the function's requirements.
        Self(unsafe { core::slice::from_raw_parts(argv, argc as usize) })
    }

    /// No arguments.
    pub(crate) const fn none() -> Self {
        Self(&[])
    }

    /// How many are left.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The `i`th of those left, without taking it.
    pub fn get(&self, i: usize) -> Option<&'a CStr> {
        let arg = *self.0.get(i)?;
        // SAFETY: By the requirements of `new`.
        Some(unsafe { CStr::from_char_ptr(arg) })
    }

    /// Takes the next one, like `dm_shift_arg`.
    pub fn shift(&mut self) -> Option<&'a CStr> {
        let arg = self.get(0)?;
        self.0 = self.0.get(1..).unwrap_or_default();
        Some(arg)
    }

    /// Skips `n`, like `dm_consume_args`; EINVAL and no change if there are fewer.
    pub fn consume(&mut self, n: usize) -> Result {
        self.0 = self.0.get(n..).ok_or(EINVAL)?;
        Ok(())
    }

    /// Takes a number from `min` to `max`, like `dm_read_arg`; EINVAL otherwise.
    pub fn read(&mut self, min: u32, max: u32) -> Result<u32> {
        let value = self.shift().and_then(parse_uint).ok_or(EINVAL)?;
        if (min..=max).contains(&value) {
            Ok(value)
        } else {
            Err(EINVAL)
        }
    }

    /// Takes the count of a group and splits the group off, like `dm_read_arg_group`.
    ///
    /// The group is of `min` to `max` arguments. EINVAL if the count is no such number or if fewer
    /// arguments follow.
    pub fn read_group(&mut self, min: u32, max: u32) -> Result<Args<'a>> {
        let n = self.read(min, max)? as usize;
        let (group, rest) = self.0.split_at_checked(n).ok_or(EINVAL)?;
        self.0 = rest;
        Ok(Args(group))
    }
}

/// Parses a decimal number like `kstrtoull(s, 10, ..)`: an optional `+`, digits, an optional
/// newline.
///
/// EINVAL if it is no number, ERANGE if it is too large.
pub fn parse_u64(s: &CStr) -> Result<u64> {
    let mut value = 0;
    // SAFETY: `s` is a C string, `value` is writable.
    to_result(unsafe { bindings::kstrtoull(s.as_char_ptr(), 10, &mut value) })?;
    Ok(value)
}

/// Parses a decimal number like `kstrtoul(s, 10, ..)`, the limits are those of C's `long`.
pub fn parse_ulong(s: &CStr) -> Result<usize> {
    usize::try_from(parse_u64(s)?).map_err(|_| ERANGE)
}

/// Parses a decimal number like `kstrtouint(s, 10, ..)`.
pub fn parse_u32(s: &CStr) -> Result<u32> {
    u32::try_from(parse_u64(s)?).map_err(|_| ERANGE)
}

/// Parses a number like `sscanf(s, "%u%c", ..) == 1`, as the core does for arguments with limits.
///
/// Leading white space is accepted, trailing characters are not, numbers wrap at 32 bits.
pub fn parse_uint(s: &CStr) -> Option<u32> {
    let mut value: c_uint = 0;
    let mut rest: c_char = 0;
    // SAFETY: The format asks for an `unsigned int` and a `char`, both are writable.
    let n = unsafe {
        bindings::sscanf(
            s.as_char_ptr(),
            c"%u%c".as_char_ptr(),
            &raw mut value,
            &raw mut rest,
        )
    };
    (n == 1).then_some(value)
}

/// Parses a number like `sscanf(s, "%llu%c", ..) == 1`.
///
/// Leading white space is accepted, trailing characters are not, numbers wrap at 64 bits.
pub fn parse_ulonglong(s: &CStr) -> Option<u64> {
    let mut value: c_ulonglong = 0;
    let mut rest: c_char = 0;
    // SAFETY: The format asks for an `unsigned long long` and a `char`, both are writable.
    let n = unsafe {
        bindings::sscanf(
            s.as_char_ptr(),
            c"%llu%c".as_char_ptr(),
            &raw mut value,
            &raw mut rest,
        )
    };
    (n == 1).then_some(value)
}

/// Compares two words like `strcasecmp(a, b) == 0`, which is how the core compares keywords.
pub fn same_word(a: &CStr, b: &CStr) -> bool {
    // SAFETY: Both are C strings.
    unsafe { bindings::strcasecmp(a.as_char_ptr(), b.as_char_ptr()) == 0 }
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_args)]
mod tests {
    use super::*;

    fn with_args<R>(words: &[&'static CStr], f: impl FnOnce(Args<'_>) -> R) -> Option<R> {
        let mut argv = KVec::new();
        for w in words {
            argv.push(w.as_char_ptr().cast_mut(), GFP_KERNEL).ok()?;
        }
        // SAFETY: `argv` holds C strings of static lifetime and lives through the call.
        Some(f(unsafe {
            Args::new(argv.len() as c_uint, argv.as_mut_ptr())
        }))
    }

    #[test]
    fn shifts_and_consumes() {
        let seen = with_args(&[c"a", c"b", c"c"], |mut args| {
            let first = args.shift() == Some(c"a");
            let too_many = args.consume(3) == Err(EINVAL);
            let left = args.len();
            let skipped = args.consume(1).is_ok();
            let last = args.shift() == Some(c"c");
            (first, too_many, left, skipped, last, args.shift().is_none())
        });
        assert!(seen == Some((true, true, 2, true, true, true)));
    }

    #[test]
    fn groups() {
        let ok = with_args(&[c"2", c"x", c"y", c"z"], |mut args| {
            let group = args.read_group(0, 4).map(|g| g.len());
            (group, args.len())
        });
        assert!(ok == Some((Ok(2), 1)));
        for bad in [c"5", c"-1", c"2x", c"", c"3"] {
            let r = with_args(&[bad, c"x", c"y"], |mut args| {
                args.read_group(0, 4).map(|g| g.len())
            });
            assert!(r == Some(Err(EINVAL)));
        }
    }

    #[test]
    fn numbers_as_in_c() {
        assert!(parse_u64(c"128") == Ok(128));
        assert!(parse_u64(c"+128") == Ok(128));
        assert!(parse_u64(c"128\n") == Ok(128));
        assert!(parse_u64(c"18446744073709551615") == Ok(u64::MAX));
        assert!(parse_u64(c"18446744073709551616") == Err(ERANGE));
        for bad in [c"", c" 1", c"1 ", c"-1", c"0x10", c"1k", c"+", c"++1"] {
            assert!(parse_u64(bad) == Err(EINVAL));
        }
        assert!(parse_u32(c"4294967295") == Ok(u32::MAX));
        assert!(parse_u32(c"4294967296") == Err(ERANGE));
        assert!(parse_uint(c" 7") == Some(7));
        assert!(parse_uint(c"7 ").is_none());
        assert!(parse_uint(c"x").is_none());
        assert!(parse_ulonglong(c"7") == Some(7));
        assert!(parse_ulonglong(c"7x").is_none());
    }

    #[test]
    fn keywords_ignore_case() {
        assert!(same_word(c"Ignore_Discard", c"ignore_discard"));
        assert!(!same_word(c"ignore", c"ignore_discard"));
    }
}
