// SPDX-License-Identifier: GPL-2.0

//! Making a target type known to the core.

use crate::{
    bindings,
    bio::Slot,
    ctr::Devices,
    live,
    target::{
        EachDevice,
        StatusFlags, //
    },
    Args,
    Bio,
    BlkStatus,
    Ctr,
    EndIo,
    Limits,
    Map,
    Message,
    Op,
    Output,
    StatusKind,
    Target,
    Ti, //
};
use core::{
    marker::PhantomData,
    mem,
    ptr::NonNull, //
};
use kernel::{
    error::{
        from_result,
        to_result, //
    },
    module::this_module,
    prelude::*,
    sync::rcu,
    types::Opaque, //
};

/// A registered target type; it belongs into the module's own struct.
///
/// Dropping it waits until no code of the module is in use; see the crate's documentation.
#[pin_data(PinnedDrop)]
pub struct Registration<T: Target> {
    #[pin]
    tt: Opaque<bindings::target_type>,
    _t: PhantomData<T>,
}

// SAFETY: Unregistering may happen on any thread.
unsafe impl<T: Target> Send for Registration<T> {}
// SAFETY: There are no `&self` methods.
unsafe impl<T: Target> Sync for Registration<T> {}

impl<T: Target> Registration<T> {
    /// Registers the target type; EEXIST if there is one of this name.
    pub fn new() -> impl PinInit<Self, Error> {
        live::note_use();
        try_pin_init!(Self {
            tt <- Opaque::try_ffi_init(|slot: *mut bindings::target_type| {
                // SAFETY: `slot` is valid for writes, and pinned until it is unregistered in
                // `drop`.
                unsafe {
                    slot.write(Callbacks::<T>::target_type());
                    to_result(bindings::dm_register_target(slot))
                }
            }),
            _t: PhantomData,
        })
    }
}

#[pinned_drop]
impl<T: Target> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by `new`. No target is left, as each holds a reference to the module.
        unsafe { bindings::dm_unregister_target(self.tt.get()) };
        live::wait();
    }
}

/// A target of a table, as the core's `private` knows it.
struct Instance<T> {
    target: Pin<KBox<T>>,
    ti: Ti,
    devices: Devices,
}

/// The functions that the core calls.
///
/// For all of them, the core guarantees that `ti` is a target of type `T` and that its `private` is
/// what `ctr` set, from when `ctr` succeeds until `dtr` is called, once. Bios are clones of the
/// core's for this target.
struct Callbacks<T>(PhantomData<T>);

/// A callback if the target has it.
///
/// For constants alone: in them the callback that is not chosen is not compiled, which it could not be, as what it
/// calls does not exist.
macro_rules! choose {
    ($has:expr, $callback:ident) => {
        if $has {
            Some(Self::$callback)
        } else {
            None
        }
    };
}

impl<T: Target> Callbacks<T> {
    const ALL: bindings::target_type = bindings::target_type {
        ctr: Some(Self::ctr),
        dtr: Some(Self::dtr),
        map: Some(Self::map),
        end_io: choose!(T::HAS_END_IO || mem::needs_drop::<T::PerBio>(), end_io),
        presuspend: choose!(T::HAS_PRESUSPEND, presuspend),
        presuspend_undo: choose!(T::HAS_PRESUSPEND_UNDO, presuspend_undo),
        postsuspend: choose!(T::HAS_POSTSUSPEND, postsuspend),
        preresume: choose!(T::HAS_PRERESUME, preresume),
        resume: choose!(T::HAS_RESUME, resume),
        message: choose!(T::HAS_MESSAGE, message),
        status: choose!(T::HAS_STATUS, status),
        iterate_devices: choose!(T::HAS_ITERATE_DEVICES, iterate_devices),
        io_hints: choose!(T::HAS_IO_HINTS, io_hints),
        ..pin_init::zeroed()
    };

    fn target_type() -> bindings::target_type {
        bindings::target_type {
            name: T::NAME.as_char_ptr(),
            module: this_module::<T::Module>().as_ptr(),
            version: T::VERSION,
            features: T::FEATURES.0,
            ..Self::ALL
        }
    }

    /// # Safety
    ///
    /// For the core only, between `ctr` and `dtr`; the result must not be used beyond the call.
    #[inline]
    unsafe fn instance<'a>(ti: *mut bindings::dm_target) -> &'a Instance<T> {
        // SAFETY: Set by `ctr`, and unchanged until `dtr`.
        unsafe { &*(*ti).private.cast::<Instance<T>>() }
    }

    /// # Safety
    ///
    /// For the core only.
    unsafe extern "C" fn ctr(
        target: *mut bindings::dm_target,
        argc: c_uint,
        argv: *mut *mut c_char,
    ) -> c_int {
        // SAFETY: The target is under construction and so ours. The core has put a reason there that tells nothing.
        let unknown = unsafe { (*target).error };
        let result = from_result(|| {
            let ptr = NonNull::new(target).ok_or(EINVAL)?;
            // SAFETY: `target` is valid until the destructor returns, or until we return an error;
            // `undo` and `dtr` revoke the handle before.
            let ti = unsafe { Ti::new(ptr)? };
            let mut devices = Devices::new();
            let undo = |devices: Devices| {
                ti.revoke();
                // SAFETY: This is the constructor of the target they were got for.
                unsafe { devices.put(target) };
            };

            // SAFETY: The target is under construction and so ours, and the arguments are C strings
            // that live as long as this call.
            let made =
                unsafe { T::ctr(&mut Ctr::new(ptr, &ti, &mut devices), Args::new(argc, argv)) };
            let made = match made {
                Ok(made) => made,
                Err(e) => {
                    undo(devices);
                    return Err(e);
                }
            };
            let place = match KBox::<Instance<T>>::new_uninit(GFP_KERNEL) {
                Ok(place) => place,
                Err(e) => {
                    drop(made);
                    undo(devices);
                    return Err(e.into());
                }
            };
            let instance = KBox::write(
                place,
                Instance {
                    target: made,
                    ti,
                    devices,
                },
            );
            // SAFETY: The target is still ours.
            unsafe {
                (*target).per_io_data_size = Slot::<T::PerBio>::SIZE as c_uint;
                bindings::dm_target::set_accounts_remapped_io_raw(target, true);
                (*target).private = KBox::into_raw(instance).cast();
            }
            Ok(0)
        });
        if result == -(bindings::ENOMEM as c_int) {
            // SAFETY: As above.
            unsafe {
                if (*target).error == unknown {
                    (*target).error = c"Out of memory".as_char_ptr().cast_mut();
                }
            }
        }
        result
    }

    /// # Safety
    ///
    /// For the core only.
    unsafe extern "C" fn dtr(target: *mut bindings::dm_target) {
        // SAFETY: Set by `ctr`, and the core calls us once.
        let instance = unsafe { KBox::from_raw((*target).private.cast::<Instance<T>>()) };
        let Instance {
            target: this,
            ti,
            devices,
        } = KBox::into_inner(instance);
        drop(this);
        ti.revoke();
        // SAFETY: This is the destructor of the target they were got for.
        unsafe { devices.put(target) };
    }

    /// # Safety
    ///
    /// For the core only.
    unsafe extern "C" fn map(ti: *mut bindings::dm_target, bio: *mut bindings::bio) -> c_int {
        // SAFETY: The bio is the core's for this target and ours, its slot is not initialised yet.
        // We have the only `Bio` of it. The target stays during the call, whatever becomes of the bio: the core is in
        // a read-side critical section of `io_barrier`, for which `dm_sync_table` waits before the target is destroyed.
        let (instance, slot, mut owned) = unsafe {
            let instance = Self::instance(ti);
            let slot = Slot::of(bio);
            slot.write(Slot::new(T::PerBio::default(), &instance.devices));
            let sector = &raw mut (*bio).bi_iter.bi_sector;
            *sector = (*sector).wrapping_sub((*ti).begin);
            (instance, slot, Bio::from_raw(NonNull::new_unchecked(bio)))
        };

        if T::HAS_ACCEPT && matches!(owned.op(), Op::Discard | Op::WriteZeroes) {
            // SAFETY: Called by the core, so the target is valid.
            let is_single = unsafe {
                match owned.op() {
                    Op::Discard => (*ti).num_discard_bios == 1,
                    _ => (*ti).num_write_zeroes_bios == 1,
                }
            };
            if is_single {
                let sectors = instance.target.accept(&owned);
                // SAFETY: The bio is being mapped, and is the only one that the core made for its part of the
                // original: only for several would it be one of equals.
                unsafe { owned.accept(sectors) };
            }
        }

        let kept = match instance.target.map(owned) {
            Map::Submitted => return bindings::DM_MAPIO_SUBMITTED as c_int,
            Map::Remapped(kept) => {
                if kept.raw().as_ptr() == bio {
                    kept.into_raw();
                    // SAFETY: The bio is back, so nobody has a `Bio` of it, and the slot is ours.
                    if unsafe { (*slot).is_submittable() } {
                        return bindings::DM_MAPIO_REMAPPED as c_int;
                    }
                    // SAFETY: As above; we have the only `Bio` of it.
                    unsafe { Bio::<T::PerBio>::from_raw(NonNull::new_unchecked(bio)) }.submit();
                    return bindings::DM_MAPIO_SUBMITTED as c_int;
                }
                kept.submit();
                return bindings::DM_MAPIO_SUBMITTED as c_int;
            }
            Map::Kill(kept) => kept,
        };
        if kept.raw().as_ptr() == bio {
            // SAFETY: The bio is back, so nobody has a `Bio` of it, and the core frees it next
            // without calling `end_io`: this is the end of the per-bio data.
            unsafe {
                kept.into_raw();
                slot.drop_in_place();
            }
            bindings::DM_MAPIO_KILL as c_int
        } else {
            kept.end(BlkStatus::IOERR);
            bindings::DM_MAPIO_SUBMITTED as c_int
        }
    }

    /// # Safety
    ///
    /// For the core only.
    unsafe extern "C" fn end_io(
        ti: *mut bindings::dm_target,
        bio: *mut bindings::bio,
        error: *mut bindings::blk_status_t,
    ) -> c_int {
        // SAFETY: The slot was initialised in `map`, and is ours as the bio is: nobody has a `Bio`
        // of it, as whoever had one gave it up by submitting or ending it.
        let (slot, tell) = unsafe {
            let slot = Slot::<T::PerBio>::of(bio);
            (slot, (*slot).end())
        };
        if !T::HAS_END_IO || !tell {
            // SAFETY: As above, and the core frees the bio next.
            unsafe { slot.drop_in_place() };
            return bindings::DM_ENDIO_DONE as c_int;
        }

        let ended = {
            // What keeps the target is the bio, until somebody has it ended: the core does not suspend the device
            // before that, nor is the device closed, without which it is not removed. But `end_io` may give the bio
            // to another thread and then still use the target. So this is an RCU read-side critical section, which
            // began before anybody else could have the bio. Whoever destroys the target took the table out of use
            // after the bio had ended, and waits for such sections then: `__bind` and `__unbind` call
            // `dm_sync_table`, that is `synchronize_srcu`, for those who map bios, and `synchronize_rcu_expedited`,
            // before `dm_table_destroy` calls `dtr`. Tables that never were in use have no bios.
            let _rcu = rcu::read_lock();
            // SAFETY: The bio is the core's for this target and ours, its slot is initialised. We have
            // the only `Bio` of it, as above. The target is used in the critical section only.
            let (instance, owned, status) = unsafe {
                (
                    Self::instance(ti),
                    Bio::from_raw(NonNull::new_unchecked(bio)),
                    BlkStatus(*error),
                )
            };
            instance.target.end_io(owned, status)
        };
        let (kept, status) = match ended {
            EndIo::Incomplete => return bindings::DM_ENDIO_INCOMPLETE as c_int,
            EndIo::Done(kept, status) => (kept, status),
        };
        if kept.raw().as_ptr() == bio {
            // SAFETY: The bio is back, so nobody has a `Bio` of it, and the core frees it next:
            // this is the end of the per-bio data. `error` is the core's, to be written to.
            unsafe {
                kept.into_raw();
                slot.drop_in_place();
                *error = status.0;
            }
            bindings::DM_ENDIO_DONE as c_int
        } else {
            kept.end(status);
            bindings::DM_ENDIO_INCOMPLETE as c_int
        }
    }

    /// # Safety
    ///
    /// For the core only.
    unsafe extern "C" fn presuspend(ti: *mut bindings::dm_target) {
        // SAFETY: Called by the core between `ctr` and `dtr`.
        unsafe { Self::instance(ti) }.target.presuspend();
    }

    /// # Safety
    ///
    /// For the core only.
    unsafe extern "C" fn presuspend_undo(ti: *mut bindings::dm_target) {
        // SAFETY: Called by the core between `ctr` and `dtr`.
        unsafe { Self::instance(ti) }.target.presuspend_undo();
    }

    /// # Safety
    ///
    /// For the core only.
    unsafe extern "C" fn postsuspend(ti: *mut bindings::dm_target) {
        // SAFETY: Called by the core between `ctr` and `dtr`.
        unsafe { Self::instance(ti) }.target.postsuspend();
    }

    /// # Safety
    ///
    /// For the core only.
    unsafe extern "C" fn preresume(ti: *mut bindings::dm_target) -> c_int {
        // SAFETY: Called by the core between `ctr` and `dtr`.
        let instance = unsafe { Self::instance(ti) };
        from_result(|| instance.target.preresume().map(|()| 0))
    }

    /// # Safety
    ///
    /// For the core only.
    unsafe extern "C" fn resume(ti: *mut bindings::dm_target) {
        // SAFETY: Called by the core between `ctr` and `dtr`.
        unsafe { Self::instance(ti) }.target.resume();
    }

    /// # Safety
    ///
    /// For the core only.
    unsafe extern "C" fn message(
        ti: *mut bindings::dm_target,
        argc: c_uint,
        argv: *mut *mut c_char,
        result: *mut c_char,
        maxlen: c_uint,
    ) -> c_int {
        // SAFETY: Called by the core between `ctr` and `dtr`. The arguments are C strings that
        // nobody changes but whoever writes to `result`, a buffer of `maxlen` bytes.
        let (instance, mut msg) = unsafe {
            (
                Self::instance(ti),
                Message::new(Args::new(argc, argv), result, maxlen),
            )
        };
        from_result(|| {
            instance.target.message(&mut msg)?;
            // One tells the core that there is a reply.
            Ok(msg.replied().into())
        })
    }

    /// # Safety
    ///
    /// For the core only.
    unsafe extern "C" fn status(
        ti: *mut bindings::dm_target,
        kind: bindings::status_type_t,
        flags: c_uint,
        result: *mut c_char,
        maxlen: c_uint,
    ) {
        let kind = match kind {
            bindings::status_type_t_STATUSTYPE_INFO => StatusKind::Info,
            bindings::status_type_t_STATUSTYPE_TABLE => StatusKind::Table,
            _ => StatusKind::Ima,
        };
        // SAFETY: Called by the core between `ctr` and `dtr`; `result` is a buffer of `maxlen`
        // bytes.
        let (instance, mut out) = unsafe { (Self::instance(ti), Output::new(result, maxlen)) };
        let _ = instance.target.status(kind, StatusFlags(flags), &mut out);
    }

    /// # Safety
    ///
    /// For the core only.
    unsafe extern "C" fn iterate_devices(
        ti: *mut bindings::dm_target,
        f: bindings::iterate_devices_callout_fn,
        data: *mut c_void,
    ) -> c_int {
        // SAFETY: Called by the core between `ctr` and `dtr`.
        let instance = unsafe { Self::instance(ti) };
        let Some(f) = f else {
            return 0;
        };
        let mut each = EachDevice {
            ti,
            devices: &instance.devices,
            f,
            data,
        };
        match instance.target.iterate_devices(&mut each) {
            Ok(()) => 0,
            Err(stop) => stop.0.get(),
        }
    }

    /// # Safety
    ///
    /// For the core only.
    unsafe extern "C" fn io_hints(
        ti: *mut bindings::dm_target,
        limits: *mut bindings::queue_limits,
    ) {
        // SAFETY: Called by the core between `ctr` and `dtr`, with limits that are put together for
        // us and used by nobody else meanwhile.
        let (instance, limits) = unsafe { (Self::instance(ti), Limits::from_raw_mut(limits)) };
        instance.target.io_hints(limits);
    }
}

#[cfg(dm_thin_kunit)]
#[kunit_tests(dm_registration)]
mod tests {
    use super::*;
    use crate::{
        bio::fake::FakeBio,
        workqueue::OwnedQueue,
        Features, //
    };
    use kernel::{
        module::ThisModule,
        sync::{
            atomic::{
                Acquire,
                AtomicFlag,
                Release, //
            },
            Arc,
            Completion, //
        },
        time::{
            Delta,
            Instant,
            Monotonic, //
        },
        ModuleMetadata, //
    };

    struct NoModule;

    impl ModuleMetadata for NoModule {
        const NAME: &'static CStr = c"none";
        // SAFETY: It stands for no module, and nothing is registered for it.
        const THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(core::ptr::null_mut()) };
    }

    #[pin_data]
    struct Shared {
        /// The bio was given away.
        #[pin]
        given: Completion,
        /// The target was destroyed.
        is_gone: AtomicFlag,
        /// It was so while `end_io` was still using it.
        is_gone_too_early: AtomicFlag,
        is_in_rcu: AtomicFlag,
    }

    /// A target that gives bios away that have ended.
    struct Giver(Arc<Shared>);

    impl Drop for Giver {
        fn drop(&mut self) {
            self.0.is_gone.store(true, Release);
        }
    }

    fn is_in_rcu() -> bool {
        // SAFETY: It only asks.
        unsafe { bindings::dm_rs_helper_rcu_read_lock_held() }
    }

    #[vtable]
    impl Target for Giver {
        const NAME: &'static CStr = c"giver";
        const VERSION: [u32; 3] = [1, 0, 0];
        const FEATURES: Features = Features::NONE;
        type Module = NoModule;
        type OwnerModule = NoModule;
        type PerBio = ();

        fn ctr(_: &mut Ctr<'_>, _: Args<'_>) -> Result<Pin<KBox<Self>>> {
            Err(EINVAL)
        }

        fn map(&self, bio: Bio<()>) -> Map<()> {
            Map::Kill(bio)
        }

        fn end_io(&self, bio: Bio<()>, _: BlkStatus) -> EndIo<()> {
            let shared = self.0.clone();
            shared.is_in_rcu.store(is_in_rcu(), Release);
            drop(bio);
            shared.given.complete_all();
            // It takes a moment until this one does not need `self` any more.
            let begin = Instant::<Monotonic>::now();
            while begin.elapsed() < Delta::from_millis(300) && !shared.is_gone.load(Acquire) {
                core::hint::spin_loop();
            }
            let is_gone = shared.is_gone.load(Acquire);
            shared.is_gone_too_early.store(is_gone, Release);
            EndIo::Incomplete
        }
    }

    #[test]
    fn a_target_outlives_its_end_io() -> Result {
        let queue = OwnedQueue::unbound(c"dm-test", 0)?;
        let shared = Arc::pin_init(
            pin_init!(Shared {
                given <- Completion::new(),
                is_gone: AtomicFlag::new(false),
                is_gone_too_early: AtomicFlag::new(false),
                is_in_rcu: AtomicFlag::new(false),
            }),
            GFP_KERNEL,
        )?;
        let mut target = KBox::new(pin_init::zeroed::<bindings::dm_target>(), GFP_KERNEL)?;
        let ti = NonNull::from(&mut *target);
        let instance = Instance {
            target: KBox::pin(Giver(shared.clone()), GFP_KERNEL)?,
            // SAFETY: The target is there until the end of the test, and is destroyed before.
            ti: unsafe { Ti::without_table(ti)? },
            devices: Devices::new(),
        };
        target.private = KBox::into_raw(KBox::new(instance, GFP_KERNEL)?).cast();

        let other = shared.clone();
        let address = ti.as_ptr().expose_provenance();
        queue.spawn(GFP_KERNEL, move || {
            other.given.wait_for_completion();
            // SAFETY: As the core does when the last bio has ended; the target was given its instance above.
            unsafe {
                bindings::synchronize_rcu_expedited();
                Callbacks::<Giver>::dtr(core::ptr::with_exposed_provenance_mut(address));
            }
        })?;
        let mut fake = FakeBio::new((), 0, bindings::req_op_REQ_OP_READ)?;
        let mut status = 0;
        // SAFETY: The target has its instance, and the bio is one for it, as the core would make it.
        let action = unsafe {
            let bio = fake.bio::<()>().into_raw();
            Callbacks::<Giver>::end_io(ti.as_ptr(), bio.as_ptr(), &mut status)
        };
        assert_eq!(action, bindings::DM_ENDIO_INCOMPLETE as c_int);
        queue.flush();
        assert!(shared.is_gone.load(Acquire));
        assert!(!shared.is_gone_too_early.load(Acquire));
        assert!(shared.is_in_rcu.load(Acquire));
        // So that the line above tells something, where locks are checked.
        assert!(!cfg!(CONFIG_PROVE_RCU) || !is_in_rcu());
        Ok(())
    }
}
