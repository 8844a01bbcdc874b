// SPDX-License-Identifier: GPL-2.0

//! Which mode a pool gets into when something happens, and what is to be done then.
//!
//! This is a pure function of the pool's [`State`], the [`Event`] and its [`Conditions`]. It gives the new state and
//! [`Actions`], which [`control`](crate::control) takes.
//!
//! | event \ mode | write | out of data space | out of metadata space | read-only | fail |
//! | --- | --- | --- | --- | --- | --- |
//! | table bound | the table's | the table's | the table's | the table's | |
//! | data space exhausted | out of data space | | | | |
//! | data space freed | | write | | | |
//! | metadata space exhausted | out of metadata space | out of metadata space | | | |
//! | metadata space freed | | | write | | |
//! | timeout expired | | the same, but I/O fails | | | |
//! | operation failed | read-only | read-only | read-only | read-only | |
//! | rollback failed | fail | fail | fail | fail | |
//!
//! Nothing leads out of the fail mode. Write mode is refused while the metadata need a check: the mode stays then, or
//! becomes read-only if it is write mode.

use dm::BlkStatus;

use crate::mode::Mode;

/// What a pool can do, and how it treats what it cannot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct State {
    pub(crate) mode: Mode,
    /// Whether writes that find no free block fail at once.
    pub(crate) error_if_no_space: bool,
    /// Whether the table asks for that.
    table_errors_if_no_space: bool,
    /// Whether the pool has run out of data space since it was in write mode.
    pub(crate) out_of_data_space: bool,
}

/// Something that matters to the mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// A table is being resumed.
    Bound {
        /// The mode that it asks for, or that the pool had when it was suspended with this table.
        mode: Mode,
        /// Whether writes that find no free block shall fail at once.
        error_if_no_space: bool,
    },
    /// An allocation has found no free data block.
    DataSpaceExhausted,
    /// After a commit there are free data blocks.
    DataSpaceFreed,
    /// After a commit there is no metadata block but those that are kept back for commits.
    MetadataSpaceExhausted,
    /// The metadata device is larger now, or metadata blocks were freed.
    MetadataSpaceFreed,
    /// Writes have waited for data space for as long as they may.
    TimeoutExpired,
    /// A change of the metadata has failed, and was rolled back.
    OperationFailed,
    /// A failed change could not be rolled back, or that could not be noted.
    RollbackFailed,
}

/// What else decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Conditions {
    /// Whether the metadata must be checked before they may be written.
    pub(crate) needs_check: bool,
    /// For how many seconds writes may wait for data space; 0 means for ever.
    pub(crate) no_space_timeout: u32,
}

/// What to do about the metadata device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Leave it as it is.
    Keep,
    /// Allow writing.
    Writable,
    /// Allow nothing but reading.
    ReadOnly,
}

/// What to do about the time for which writes may wait for data space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Timeout {
    /// Leave it as it is.
    Keep,
    /// Let it begin, with so many seconds, unless it has begun already.
    Start(u32),
    /// Let it not expire.
    Cancel,
}

/// What to do about writes that wait for data space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waiting {
    /// Leave them where they are.
    Keep,
    /// Try them again.
    Retry,
    /// End them with this status.
    Fail(BlkStatus),
}

/// What is to be done when an event has changed the state, in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Actions {
    /// Log that write mode is refused.
    pub(crate) complain: bool,
    pub(crate) access: Access,
    pub(crate) timeout: Timeout,
    /// Send an event, and log the new mode.
    pub(crate) announce: bool,
    pub(crate) waiting: Waiting,
}

impl Actions {
    const NONE: Self = Self {
        complain: false,
        access: Access::Keep,
        timeout: Timeout::Keep,
        announce: false,
        waiting: Waiting::Keep,
    };
}

impl State {
    /// The state of a pool that no table is bound to yet.
    pub(crate) const NEW: Self = Self {
        mode: Mode::Write,
        error_if_no_space: false,
        table_errors_if_no_space: false,
        out_of_data_space: false,
    };

    /// What `event` makes of this state.
    pub(crate) fn on(self, event: Event, conditions: Conditions) -> (Self, Actions) {
        use Mode::*;
        match (self.mode, event) {
            (
                _,
                Event::Bound {
                    mode,
                    error_if_no_space,
                },
            ) => Self {
                error_if_no_space,
                table_errors_if_no_space: error_if_no_space,
                ..self
            }
            .enter(mode, conditions),
            (Write, Event::DataSpaceExhausted) => self.enter(OutOfDataSpace, conditions),
            (OutOfDataSpace, Event::DataSpaceFreed) => {
                let (new, actions) = self.enter(Write, conditions);
                let waiting = match new.mode {
                    Write => Waiting::Retry,
                    _ => actions.waiting,
                };
                (new, Actions { waiting, ..actions })
            }
            (Write | OutOfDataSpace, Event::MetadataSpaceExhausted) => {
                self.enter(OutOfMetadataSpace, conditions)
            }
            (OutOfMetadataSpace, Event::MetadataSpaceFreed) => self.enter(Write, conditions),
            (OutOfDataSpace, Event::TimeoutExpired) if !self.error_if_no_space => (
                Self {
                    error_if_no_space: true,
                    ..self
                },
                Actions {
                    announce: true,
                    waiting: Waiting::Fail(BlkStatus::NOSPC),
                    ..Actions::NONE
                },
            ),
            (_, Event::OperationFailed) => self.enter(ReadOnly, conditions),
            (_, Event::RollbackFailed) => self.enter(Fail, conditions),
            _ => (self, Actions::NONE),
        }
    }

    /// Goes to the mode `wanted` as far as that is allowed.
    fn enter(self, wanted: Mode, conditions: Conditions) -> (Self, Actions) {
        let complain = wanted == Mode::Write && conditions.needs_check;
        let mode = match (self.mode, complain) {
            (Mode::Fail, _) => Mode::Fail,
            (Mode::Write, true) => Mode::ReadOnly,
            (old, true) => old,
            (_, false) => wanted,
        };

        let mut new = Self { mode, ..self };
        let mut actions = Actions {
            complain,
            access: match mode.may_change_metadata() {
                true => Access::Writable,
                false => Access::ReadOnly,
            },
            announce: mode != self.mode,
            ..Actions::NONE
        };
        match mode {
            Mode::Write => {
                new.out_of_data_space = false;
                new.error_if_no_space = self.table_errors_if_no_space;
                actions.timeout = Timeout::Cancel;
            }
            Mode::OutOfDataSpace => {
                new.out_of_data_space = true;
                if !self.error_if_no_space && conditions.no_space_timeout != 0 {
                    actions.timeout = Timeout::Start(conditions.no_space_timeout);
                }
            }
            Mode::OutOfMetadataSpace | Mode::ReadOnly | Mode::Fail => {
                actions.waiting = Waiting::Fail(self.io_error());
            }
        }
        (new, actions)
    }

    /// The status of I/O in progress that the mode makes fail.
    pub(crate) fn io_error(&self) -> BlkStatus {
        match self.out_of_data_space {
            true => BlkStatus::NOSPC,
            false => BlkStatus::IOERR,
        }
    }

    /// The mode's name in log lines.
    pub(crate) fn description(&self) -> &'static str {
        self.mode.description(self.error_if_no_space)
    }
}

#[cfg(dm_thin_kunit)]
#[kernel::macros::kunit_tests(dm_thin_state)]
mod tests {
    use super::*;
    use Mode::*;

    const GOOD: Conditions = Conditions {
        needs_check: false,
        no_space_timeout: 60,
    };
    const BROKEN: Conditions = Conditions {
        needs_check: true,
        ..GOOD
    };

    const OTHER_EVENTS: [Event; 7] = [
        Event::DataSpaceExhausted,
        Event::DataSpaceFreed,
        Event::MetadataSpaceExhausted,
        Event::MetadataSpaceFreed,
        Event::TimeoutExpired,
        Event::OperationFailed,
        Event::RollbackFailed,
    ];

    fn state(mode: Mode) -> State {
        State {
            mode,
            out_of_data_space: mode == OutOfDataSpace,
            ..State::NEW
        }
    }

    fn bound(mode: Mode) -> Event {
        Event::Bound {
            mode,
            error_if_no_space: false,
        }
    }

    /// Calls `f` for each state that there can be, each event and all conditions.
    fn for_all(mut f: impl FnMut(State, Event, Conditions)) {
        for mode in Mode::ALL {
            for bits in 0u32..32 {
                let bit = |n: u32| bits >> n & 1 == 1;
                let old = State {
                    mode,
                    error_if_no_space: bit(0),
                    table_errors_if_no_space: bit(1),
                    out_of_data_space: bit(2),
                };
                let conditions = Conditions {
                    needs_check: bit(3),
                    no_space_timeout: u32::from(bit(4)) * 60,
                };
                for event in OTHER_EVENTS {
                    f(old, event, conditions);
                }
                for wanted in Mode::ALL {
                    for error_if_no_space in [false, true] {
                        let event = Event::Bound {
                            mode: wanted,
                            error_if_no_space,
                        };
                        f(old, event, conditions);
                    }
                }
            }
        }
    }

    /// Checks the new mode for each old one: `None` where nothing happens.
    fn check_row(event: Event, conditions: Conditions, expected: [Option<Mode>; 5]) {
        for (old, expected) in Mode::ALL.into_iter().zip(expected) {
            let (new, actions) = state(old).on(event, conditions);
            match expected {
                None => assert!(new == state(old) && actions == Actions::NONE),
                Some(mode) => {
                    assert_eq!(new.mode, mode);
                    assert_eq!(actions.announce, mode != old);
                }
            }
        }
    }

    #[test]
    fn all_pairs_of_mode_and_event() {
        const W: Option<Mode> = Some(Write);
        const D: Option<Mode> = Some(OutOfDataSpace);
        const M: Option<Mode> = Some(OutOfMetadataSpace);
        const R: Option<Mode> = Some(ReadOnly);
        const F: Option<Mode> = Some(Fail);
        const N: Option<Mode> = None;

        check_row(bound(Write), GOOD, [W, W, W, W, F]);
        check_row(bound(OutOfDataSpace), GOOD, [D, D, D, D, F]);
        check_row(bound(OutOfMetadataSpace), GOOD, [M, M, M, M, F]);
        check_row(bound(ReadOnly), GOOD, [R, R, R, R, F]);
        check_row(bound(Fail), GOOD, [F, F, F, F, F]);
        check_row(Event::DataSpaceExhausted, GOOD, [D, N, N, N, N]);
        check_row(Event::DataSpaceFreed, GOOD, [N, W, N, N, N]);
        check_row(Event::MetadataSpaceExhausted, GOOD, [M, M, N, N, N]);
        check_row(Event::MetadataSpaceFreed, GOOD, [N, N, W, N, N]);
        check_row(Event::OperationFailed, GOOD, [R, R, R, R, F]);
        check_row(Event::RollbackFailed, GOOD, [F, F, F, F, F]);

        check_row(bound(Write), BROKEN, [R, D, M, R, F]);
        check_row(bound(OutOfDataSpace), BROKEN, [D, D, D, D, F]);
        check_row(bound(OutOfMetadataSpace), BROKEN, [M, M, M, M, F]);
        check_row(bound(ReadOnly), BROKEN, [R, R, R, R, F]);
        check_row(bound(Fail), BROKEN, [F, F, F, F, F]);
        check_row(Event::DataSpaceExhausted, BROKEN, [D, N, N, N, N]);
        check_row(Event::DataSpaceFreed, BROKEN, [N, D, N, N, N]);
        check_row(Event::MetadataSpaceExhausted, BROKEN, [M, M, N, N, N]);
        check_row(Event::MetadataSpaceFreed, BROKEN, [N, N, M, N, N]);
        check_row(Event::OperationFailed, BROKEN, [R, R, R, R, F]);
        check_row(Event::RollbackFailed, BROKEN, [F, F, F, F, F]);
    }

    #[test]
    fn the_timeout_makes_waiting_writes_fail() {
        for mode in Mode::ALL {
            let (new, actions) = state(mode).on(Event::TimeoutExpired, GOOD);
            if mode != OutOfDataSpace {
                assert!(new == state(mode) && actions == Actions::NONE);
                continue;
            }
            assert_eq!(new.mode, OutOfDataSpace);
            assert!(new.error_if_no_space && actions.announce);
            assert_eq!(new.description(), "out-of-data-space (error IO)");
            assert_eq!(actions.waiting, Waiting::Fail(BlkStatus::NOSPC));

            // Once.
            let (again, actions) = new.on(Event::TimeoutExpired, GOOD);
            assert!(again == new && actions == Actions::NONE);

            // More space brings back what the table asks for.
            let (back, actions) = new.on(Event::DataSpaceFreed, GOOD);
            assert_eq!(back, State::NEW);
            assert_eq!(actions.waiting, Waiting::Retry);
            assert_eq!(actions.timeout, Timeout::Cancel);

            // So does a resume, with more time.
            let (back, actions) = new.on(bound(OutOfDataSpace), GOOD);
            assert_eq!(back, state(OutOfDataSpace));
            assert_eq!(actions.timeout, Timeout::Start(60));
            assert!(!actions.announce);
        }
    }

    #[test]
    fn time_is_given_only_where_writes_wait() {
        let start = |error_if_no_space, no_space_timeout| {
            let old = State {
                error_if_no_space,
                table_errors_if_no_space: error_if_no_space,
                ..State::NEW
            };
            let conditions = Conditions {
                no_space_timeout,
                ..GOOD
            };
            old.on(Event::DataSpaceExhausted, conditions).1.timeout
        };
        assert_eq!(start(false, 7), Timeout::Start(7));
        assert_eq!(start(false, 0), Timeout::Keep);
        assert_eq!(start(true, 7), Timeout::Keep);
        assert_eq!(start(true, 0), Timeout::Keep);
    }

    #[test]
    fn a_failed_pool_stays_failed() {
        for_all(|old, event, conditions| {
            let (new, actions) = old.on(event, conditions);
            if old.mode == Fail {
                assert_eq!(new.mode, Fail);
                assert!(!actions.announce && actions.access != Access::Writable);
            }
        });
    }

    #[test]
    fn unchecked_metadata_are_never_written_to_anew() {
        for_all(|old, event, conditions| {
            let (new, actions) = old.on(event, conditions);
            if conditions.needs_check && new.mode == Write {
                // What was going on is for whoever finds the fault to end.
                assert!(old.mode == Write && actions == Actions::NONE);
            }
            if actions.complain {
                assert!(conditions.needs_check && new.mode != Write);
            }
        });
    }

    #[test]
    fn the_mode_decides_on_access() {
        for_all(|old, event, conditions| {
            let (new, actions) = old.on(event, conditions);
            match actions.access {
                Access::Keep => assert_eq!(new.mode, old.mode),
                Access::Writable => assert!(new.mode.may_change_metadata()),
                Access::ReadOnly => assert!(!new.mode.may_change_metadata()),
            }
        });
    }

    #[test]
    fn each_change_of_mode_is_announced() {
        for_all(|old, event, conditions| {
            let (new, actions) = old.on(event, conditions);
            let expired = event == Event::TimeoutExpired && new != old;
            assert_eq!(actions.announce, new.mode != old.mode || expired);
        });
    }

    #[test]
    fn nothing_waits_where_nothing_can_come() {
        for_all(|old, event, conditions| {
            let (new, actions) = old.on(event, conditions);
            if new.mode != old.mode && !new.mode.may_change_metadata() {
                let status = match old.out_of_data_space {
                    true => BlkStatus::NOSPC,
                    false => BlkStatus::IOERR,
                };
                assert_eq!(actions.waiting, Waiting::Fail(status));
            }
            if actions.waiting == Waiting::Retry {
                assert_eq!(new.mode, Write);
            }
        });
    }

    #[test]
    fn the_reason_of_errors_is_kept_until_write_mode() {
        let (full, _) = State::NEW.on(Event::DataSpaceExhausted, GOOD);
        assert!(full.io_error() == BlkStatus::NOSPC);
        let (failed, actions) = full.on(Event::OperationFailed, BROKEN);
        assert!(failed.io_error() == BlkStatus::NOSPC);
        assert_eq!(actions.waiting, Waiting::Fail(BlkStatus::NOSPC));
        let (bound, _) = failed.on(bound(Write), GOOD);
        assert!(bound.io_error() == BlkStatus::IOERR);
    }

    #[test]
    fn a_table_decides_what_becomes_of_writes_without_space() {
        for mode in Mode::ALL {
            for error_if_no_space in [false, true] {
                let event = Event::Bound {
                    mode,
                    error_if_no_space,
                };
                let (new, _) = State::NEW.on(event, GOOD);
                assert_eq!(new.mode, mode);
                assert_eq!(new.error_if_no_space, error_if_no_space);
            }
        }
    }
}
