// SPDX-License-Identifier: GPL-2.0

//! The writer for status lines and replies.

use core::{
    fmt,
    mem::MaybeUninit, //
};
use kernel::prelude::*;

/// A writer over a buffer of the core that truncates and always terminates, like `DMEMIT`.
///
/// Writing never fails: what does not fit is left out, the core sees from the full buffer that it
/// was too small and asks user space for a larger one.
pub struct Output<'a> {
    buf: &'a mut [MaybeUninit<u8>],
    len: usize,
}

impl<'a> Output<'a> {
    /// # Safety
    ///
    /// `ptr` must be valid for writes of `len` bytes for `'a`, and nothing else may use these bytes
    /// meanwhile; it may be null if `len` is zero.
    pub(crate) unsafe fn new(ptr: *mut c_char, len: c_uint) -> Self {
        if ptr.is_null() {
            return Self::over(&mut []);
        }
        // SAFETY: By the function's requirements; any byte is a valid `MaybeUninit`.
        Self::over(unsafe { core::slice::from_raw_parts_mut(ptr.cast(), len as usize) })
    }

    /// A writer over `buf`.
    pub fn over(buf: &'a mut [MaybeUninit<u8>]) -> Self {
        if let Some(b) = buf.first_mut() {
            b.write(0);
        }
        Self { buf, len: 0 }
    }

    /// Bytes written so far, without the terminator.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Write for Output<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let Some(room) = self.buf.len().checked_sub(self.len + 1) else {
            return Ok(());
        };
        let n = s.len().min(room);
        for (to, from) in self.buf.iter_mut().skip(self.len).zip(s.bytes().take(n)) {
            to.write(from);
        }
        self.len += n;
        if let Some(end) = self.buf.get_mut(self.len) {
            end.write(0);
        }
        Ok(())
    }
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_output)]
mod tests {
    use super::*;
    use core::fmt::Write as _;

    fn emitted<const N: usize>(text: &[&str]) -> [u8; N] {
        let mut buf = [const { MaybeUninit::new(b'x') }; N];
        let mut out = Output::over(&mut buf);
        for t in text {
            let _ = out.write_str(t);
        }
        // SAFETY: Initialised above.
        buf.map(|b| unsafe { b.assume_init() })
    }

    #[test]
    fn truncates_and_terminates() {
        assert!(emitted::<4>(&["123456"]) == *b"123\0");
        assert!(emitted::<4>(&["12", "34", "56"]) == *b"123\0");
        assert!(emitted::<4>(&["12"]) == *b"12\0x");
        assert!(emitted::<1>(&["12"]) == *b"\0");
        assert!(emitted::<0>(&["12"]) == *b"");
        assert!(emitted::<2>(&[]) == *b"\0x");
    }

    #[test]
    fn formats() {
        let mut buf = [const { MaybeUninit::uninit() }; 16];
        let mut out = Output::over(&mut buf);
        assert!(write!(out, "{} {}/{} ", 1, 2, 3).is_ok());
        assert_eq!(out.len(), 6);
    }
}
