// SPDX-License-Identifier: GPL-2.0

//! What a pool can do at the moment.

/// A pool's mode, in the order of degradation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(i32)]
pub(crate) enum Mode {
    /// Everything works.
    Write,
    /// Metadata may change, but no data block may be allocated.
    OutOfDataSpace,
    /// As [`ReadOnly`](Self::ReadOnly), until there are more free metadata blocks; reported as read-only.
    OutOfMetadataSpace,
    /// Metadata may not change.
    ReadOnly,
    /// All I/O fails: the metadata is in an unknown state, and nothing but repair helps.
    Fail,
}

impl Mode {
    pub(crate) const ALL: [Self; 5] = [
        Self::Write,
        Self::OutOfDataSpace,
        Self::OutOfMetadataSpace,
        Self::ReadOnly,
        Self::Fail,
    ];

    /// The mode whose `as i32` is `n`; the worst one for numbers that are none.
    pub(crate) fn from_i32(n: i32) -> Self {
        Self::ALL
            .into_iter()
            .find(|&mode| mode as i32 == n)
            .unwrap_or(Self::Fail)
    }

    /// Whether messages and commits may change the metadata.
    pub(crate) fn may_change_metadata(self) -> bool {
        self < Self::OutOfMetadataSpace
    }

    /// The mode's word in the status line. A failed pool has no such word.
    pub(crate) fn status_word(self) -> &'static str {
        match self {
            Self::OutOfDataSpace => "out_of_data_space",
            Self::OutOfMetadataSpace | Self::ReadOnly => "ro",
            Self::Write | Self::Fail => "rw",
        }
    }

    /// The mode's name in log lines.
    pub(crate) fn description(self, error_if_no_space: bool) -> &'static str {
        match self {
            Self::Write => "write",
            Self::OutOfDataSpace if error_if_no_space => "out-of-data-space (error IO)",
            Self::OutOfDataSpace => "out-of-data-space (queue IO)",
            Self::OutOfMetadataSpace | Self::ReadOnly => "read-only",
            Self::Fail => "fail",
        }
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_thin_mode)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for mode in Mode::ALL {
            assert_eq!(Mode::from_i32(mode as i32), mode);
        }
        assert_eq!(Mode::from_i32(200), Mode::Fail);
    }

    #[test]
    fn words_that_others_know() {
        let words = Mode::ALL.map(Mode::status_word);
        assert_eq!(words, ["rw", "out_of_data_space", "ro", "ro", "rw"]);
    }

    #[test]
    fn metadata_change_in_the_two_best_modes() {
        let may = Mode::ALL.map(Mode::may_change_metadata);
        assert_eq!(may, [true, true, false, false, false]);
    }
}
