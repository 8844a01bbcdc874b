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
    /// As [`ReadOnly`](Self::ReadOnly), until the metadata device has grown; reported as read-only.
    OutOfMetadataSpace,
    /// Metadata may not change.
    ReadOnly,
    /// All I/O fails: the metadata is in an unknown state, and nothing but repair helps.
    Fail,
}

/// What becomes of a wish to change the mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Transition {
    /// The mode to be in from now on.
    pub(crate) mode: Mode,
    /// The wish was for write mode, but the metadata must be checked first.
    pub(crate) needs_repair: bool,
}

impl Mode {
    const ALL: [Self; 5] = [
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

    /// The mode that a pool in mode `self` gets into when `wanted` is asked for.
    ///
    /// A failed pool stays failed, and metadata that needs a check is not written to.
    pub(crate) fn transition(self, wanted: Self, needs_check: bool) -> Transition {
        let needs_repair = wanted == Self::Write && needs_check;
        let mode = match (self, needs_repair) {
            (Self::Fail, _) => Self::Fail,
            (Self::Write, true) => Self::ReadOnly,
            (old, true) => old,
            (_, false) => wanted,
        };
        Transition { mode, needs_repair }
    }

    /// Whether messages and commits may change the metadata.
    pub(crate) fn may_change_metadata(self) -> bool {
        self < Self::OutOfMetadataSpace
    }

    /// Whether the metadata device must not be written to, and the pool is not (yet) lost.
    pub(crate) fn is_read_only(self) -> bool {
        matches!(self, Self::OutOfMetadataSpace | Self::ReadOnly)
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
    fn a_failed_pool_stays_failed() {
        for wanted in Mode::ALL {
            for needs_check in [false, true] {
                assert_eq!(Mode::Fail.transition(wanted, needs_check).mode, Mode::Fail);
            }
        }
    }

    #[test]
    fn unchecked_metadata_is_never_written_to() {
        for old in Mode::ALL {
            let t = old.transition(Mode::Write, true);
            assert!(t.needs_repair);
            assert!(t.mode != Mode::Write);
        }
    }

    #[test]
    fn all_else_is_granted() {
        for old in [
            Mode::Write,
            Mode::OutOfDataSpace,
            Mode::OutOfMetadataSpace,
            Mode::ReadOnly,
        ] {
            for wanted in Mode::ALL {
                for needs_check in [false, true] {
                    if wanted == Mode::Write && needs_check {
                        continue;
                    }
                    let t = old.transition(wanted, needs_check);
                    assert_eq!(t.mode, wanted);
                    assert!(!t.needs_repair);
                }
            }
        }
    }

    #[test]
    fn numbers() {
        for mode in Mode::ALL {
            assert_eq!(Mode::from_i32(mode as i32), mode);
        }
        assert_eq!(Mode::from_i32(200), Mode::Fail);
    }
}
