// SPDX-License-Identifier: GPL-2.0

//! A pool's mode and features, and the table that they come from.

use dm::{
    params::UintParam,
    BlkStatus,
    Ti, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic,
            AtomicFlag, //
        },
        new_mutex,
        Arc,
        Mutex,
        MutexGuard, //
    }, //
};

use crate::{
    features::Features,
    mode::Mode,
    pool::Pool,
    pool_metadata::{
        PoolMetadata,
        Transaction, //
    },
    state::{
        Access,
        Actions,
        Conditions,
        Event,
        State,
        Timeout,
        Waiting, //
    },
    LOG_PREFIX, //
};

/// How many seconds writes wait for more space before they fail; 0 means for ever.
pub(crate) static NO_SPACE_TIMEOUT: UintParam = UintParam::new(60);

dm::uint_param!(
    dm_thin_pool.no_space_timeout,
    &NO_SPACE_TIMEOUT,
    "Out of data space queue IO timeout in seconds"
);

/// Whether the space of deleted thin devices goes back to the data device also where the pool's table does not say
/// so, as with tables that others make.
static DISCARD_ON_DELETE: UintParam = UintParam::new(0);

dm::uint_param!(
    dm_thin_pool.discard_on_delete,
    &DISCARD_ON_DELETE,
    "Discard the blocks of deleted thin devices in all pools (0 = only where the table says so)"
);

/// A table of the pool target, as the pool sees it.
pub(crate) struct Binding {
    pub(crate) ti: Ti,
    /// What the table asks for.
    pub(crate) requested: Features,
    /// The low-water mark, in data blocks.
    pub(crate) low_water_blocks: u64,
    /// Whether discards are passed down: asked for, and possible.
    pub(crate) passdown: AtomicFlag,
    /// The mode that the pool gets into when the table is resumed; follows the pool's mode after that.
    mode: Atomic<i32>,
}

impl Binding {
    pub(crate) fn new(ti: Ti, requested: Features, low_water_blocks: u64) -> Self {
        let mode = match requested.read_only {
            true => Mode::ReadOnly,
            false => Mode::Write,
        };
        Self {
            ti,
            requested,
            low_water_blocks,
            passdown: AtomicFlag::new(requested.discard_passdown),
            mode: Atomic::new(mode as i32),
        }
    }
}

/// What is changed with the lock held.
struct Locked {
    state: State,
    /// The table that was resumed last, until it is destroyed.
    bound: Option<Arc<Binding>>,
    /// Whether the low-water mark was reported since the last resume.
    low_water_triggered: bool,
}

/// The mode, the features in effect, and where they come from.
///
/// The mode and the features are changed with the lock held, and read without: a bio that sees an old mode is
/// as good as one that came a moment earlier.
#[pin_data]
pub(crate) struct Control {
    mode: Atomic<i32>,
    zero_new_blocks: AtomicFlag,
    discard_passdown: AtomicFlag,
    error_if_no_space: AtomicFlag,
    discard_on_delete: AtomicFlag,
    /// Whether what fails now does so for lack of data space.
    out_of_data_space: AtomicFlag,
    suspended: AtomicFlag,
    /// The length of the bound table in sectors, for those who must not wait for the lock; 0 if there is none.
    bound_len: Atomic<i64>,
    #[pin]
    locked: Mutex<Locked>,
}

impl Control {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            mode: Atomic::new(State::NEW.mode as i32),
            zero_new_blocks: AtomicFlag::new(true),
            discard_passdown: AtomicFlag::new(true),
            error_if_no_space: AtomicFlag::new(State::NEW.error_if_no_space),
            discard_on_delete: AtomicFlag::new(false),
            out_of_data_space: AtomicFlag::new(State::NEW.out_of_data_space),
            suspended: AtomicFlag::new(true),
            bound_len: Atomic::new(0),
            locked <- new_mutex!(
                Locked {
                    state: State::NEW,
                    bound: None,
                    low_water_triggered: false,
                },
                "dm_thin::Control"
            ),
        })
    }

    /// Lets everybody see the state; for those who hold the lock.
    fn publish(&self, state: &State) {
        self.error_if_no_space
            .store(state.error_if_no_space, Relaxed);
        self.out_of_data_space
            .store(state.out_of_data_space, Relaxed);
        self.mode.store(state.mode as i32, Relaxed);
    }
}

impl Pool {
    /// The mode.
    #[inline]
    pub(crate) fn mode(&self) -> Mode {
        Mode::from_i32(self.control.mode.load(Relaxed))
    }

    /// Whether blocks are zeroed before their first use.
    pub(crate) fn zeroes_new_blocks(&self) -> bool {
        self.control.zero_new_blocks.load(Relaxed)
    }

    /// Whether discards are passed down to the data device.
    pub(crate) fn passes_discards_down(&self) -> bool {
        self.control.discard_passdown.load(Relaxed)
    }

    /// Whether the space of deleted thin devices shall go back to the data device.
    pub(crate) fn wants_discard_on_delete(&self) -> bool {
        self.control.discard_on_delete.load(Relaxed) || DISCARD_ON_DELETE.get() != 0
    }

    /// Whether writes that find no free block fail at once.
    pub(crate) fn errors_if_no_space(&self) -> bool {
        self.control.error_if_no_space.load(Relaxed)
    }

    /// The status of I/O that the pool's mode makes fail.
    pub(crate) fn io_error(&self) -> BlkStatus {
        match self.control.out_of_data_space.load(Relaxed) {
            true => BlkStatus::NOSPC,
            false => BlkStatus::IOERR,
        }
    }

    /// How a write ends for which there is no block; `None` if it waits.
    pub(crate) fn unserviceable_status(&self) -> Option<BlkStatus> {
        match self.mode() {
            Mode::OutOfDataSpace if self.errors_if_no_space() => Some(BlkStatus::NOSPC),
            // Space was found at this very moment: the bio will be retried.
            Mode::OutOfDataSpace | Mode::Write => None,
            Mode::OutOfMetadataSpace | Mode::ReadOnly | Mode::Fail => Some(BlkStatus::IOERR),
        }
    }

    /// Takes the table `binding` as the one that counts.
    pub(crate) fn bind(self: &Arc<Self>, binding: &Arc<Binding>) {
        let control = &self.control;
        let requested = &binding.requested;
        let mut locked = control.locked.lock();
        locked.bound = Some(binding.clone());
        let len = i64::try_from(binding.ti.len()).unwrap_or(0);
        control.bound_len.store(len, Relaxed);
        control
            .zero_new_blocks
            .store(requested.zero_new_blocks, Relaxed);
        control
            .discard_on_delete
            .store(requested.discard_on_delete, Relaxed);
        control
            .discard_passdown
            .store(binding.passdown.load(Relaxed), Relaxed);
        let event = Event::Bound {
            mode: Mode::from_i32(binding.mode.load(Relaxed)),
            error_if_no_space: requested.error_if_no_space,
        };
        self.handle_locked(locked, event, |_| true);
    }

    /// Forgets the table `ti` if it is the one that counts.
    pub(crate) fn unbind(&self, ti: &Ti) {
        let mut locked = self.control.locked.lock();
        if matches!(&locked.bound, Some(binding) if binding.ti.is_same(ti)) {
            locked.bound = None;
            self.control.bound_len.store(0, Relaxed);
        }
    }

    /// The length of the table that counts in sectors, 0 if there is none. Does not wait.
    pub(crate) fn bound_len(&self) -> u64 {
        u64::try_from(self.control.bound_len.load(Relaxed)).unwrap_or(0)
    }

    /// The table that counts.
    fn bound(&self) -> Option<Arc<Binding>> {
        self.control.locked.lock().bound.clone()
    }

    /// Tells user space that something happened.
    pub(crate) fn event(&self) {
        if let Some(binding) = self.bound() {
            binding.ti.event();
        }
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.control.suspended.load(Relaxed)
    }

    pub(crate) fn set_suspended(&self, suspended: bool) {
        self.control.suspended.store(suspended, Relaxed);
    }

    /// The low-water mark, in data blocks.
    pub(crate) fn low_water_mark(&self) -> u64 {
        self.bound().map_or(0, |binding| binding.low_water_blocks)
    }

    /// Begins to watch the low-water mark anew.
    pub(crate) fn rearm_low_water_mark(&self) {
        self.control.locked.lock().low_water_triggered = false;
    }

    /// Tells user space, once, that no more than the low-water mark of data blocks is free.
    pub(crate) fn check_low_water_mark(&self, free: u64) {
        let binding = {
            let mut locked = self.control.locked.lock();
            match &locked.bound {
                Some(binding)
                    if free <= binding.low_water_blocks && !locked.low_water_triggered =>
                {
                    let binding = binding.clone();
                    locked.low_water_triggered = true;
                    binding
                }
                _ => return,
            }
        };
        dm::log::warn!(
            LOG_PREFIX,
            "{}: reached low water mark for data device: sending event.",
            self.name()
        );
        binding.ti.event();
    }

    /// Does what an event asks for.
    pub(crate) fn handle(self: &Arc<Self>, event: Event) {
        self.handle_locked(self.control.locked.lock(), event, |_| true);
    }

    /// In `transaction` there was no free data block, and none was withheld. Unless somebody has committed since then, and so
    /// may have freed some, this changes the mode.
    pub(crate) fn data_space_exhausted(self: &Arc<Self>, transaction: Transaction) {
        let locked = self.control.locked.lock();
        self.handle_locked(locked, Event::DataSpaceExhausted, |pool| {
            pool.transaction() == transaction
        });
    }

    /// No metadata block is free, unless somebody has freed one since that was seen.
    pub(crate) fn metadata_space_exhausted(self: &Arc<Self>) {
        let locked = self.control.locked.lock();
        self.handle_locked(locked, Event::MetadataSpaceExhausted, |pool| {
            !matches!(pool.metadata.free_metadata_blocks(), Ok(1..))
        });
    }

    /// Does what an event asks for, if it still `counts`.
    ///
    /// What it does with the lock held is in the order of the events. Bios end without: whoever adds one to those
    /// that wait looks at the mode once more after that.
    fn handle_locked(
        self: &Arc<Self>,
        mut locked: MutexGuard<'_, Locked>,
        event: Event,
        counts: impl FnOnce(&PoolMetadata) -> bool,
    ) {
        // Until the new mode is published: whoever changes the metadata sees access and mode that agree, and no
        // commit is left half-way.
        let changes = self.changes();
        let pool = self.metadata.read();
        if !counts(&pool) {
            return;
        }
        let (state, actions) = locked.state.on(
            event,
            Conditions {
                needs_check: pool.metadata.needs_check(),
                no_space_timeout: NO_SPACE_TIMEOUT.get(),
            },
        );
        let Actions {
            complain,
            access,
            timeout,
            announce,
            waiting,
        } = actions;

        if complain {
            dm::log::err!(
                LOG_PREFIX,
                "{}: unable to switch pool to write mode until repaired.",
                self.name()
            );
        }
        match access {
            Access::Keep => {}
            Access::Writable => pool.set_read_only(false),
            Access::ReadOnly => pool.set_read_only(true),
        }
        match timeout {
            Timeout::Keep => {}
            Timeout::Start(seconds) => self.give_time_for_space(seconds),
            Timeout::Cancel => self.take_time_for_space(),
        }
        locked.state = state;
        self.control.publish(&state);
        drop(pool);
        drop(changes);
        if let Some(binding) = &locked.bound {
            // A resume of the same table must not change the mode.
            binding.mode.store(state.mode as i32, Relaxed);
        }
        if announce {
            if let Some(binding) = &locked.bound {
                binding.ti.event();
            }
            dm::log::info!(
                LOG_PREFIX,
                "{}: switching pool to {} mode",
                self.name(),
                state.description()
            );
        }
        drop(locked);

        match waiting {
            Waiting::Keep => {}
            Waiting::Retry => self.retry_bios(),
            Waiting::Fail(status) => self.end_retries(status),
        }
    }
}
