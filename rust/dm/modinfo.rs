// SPDX-License-Identifier: GPL-2.0

//! What `modinfo` tells of a module, as far as `module!` does not write it.

/// Adds a line to what `modinfo` tells of the module `$module`: text literals that begin with a tag and `=`.
///
/// ```ignore
/// dm::modinfo!(dm_thin_pool, "version=", "1.0");
/// ```
#[macro_export]
macro_rules! modinfo {
    ($module:ident, $($text:expr),+ $(,)?) => {
        const _: () = {
            #[cfg(MODULE)]
            const TEXT: &str = ::core::concat!($($text,)+ "\0");
            // One list serves all modules that are built in, so each line names its own.
            #[cfg(not(MODULE))]
            const TEXT: &str = ::core::concat!(::core::stringify!($module), ".", $($text,)+ "\0");

            #[link_section = ".modinfo"]
            #[used]
            static LINE: [u8; TEXT.len()] = $crate::modinfo::bytes(TEXT);
        };
    };
}

/// The bytes of a text, whose length must be `N`.
#[doc(hidden)]
pub const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    match text.as_bytes().first_chunk() {
        Some(bytes) if text.len() == N => *bytes,
        _ => panic!("not the text's length"),
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_modinfo)]
mod tests {
    use super::*;

    #[test]
    fn keeps_all_bytes() {
        assert!(bytes::<4>("ab=\0") == *b"ab=\0");
    }
}
