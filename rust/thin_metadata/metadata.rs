// SPDX-License-Identifier: GPL-2.0

//! A pool's metadata: opening, committing, aborting, and sizes.

use zerocopy::IntoBytes;

use persistent_data::{
    block::BlockNr,
    block_manager::BlockManager,
    btree::Plain,
    error::Corruption,
    space_map::{
        DiskSpaceMap,
        SmRoot, //
    },
    transaction_manager::TransactionManager, //
};

use crate::{
    device::{
        Device,
        Devices, //
    },
    error::{
        Error,
        Result, //
    },
    format::{
        DetailsTree,
        MappingTree,
        Superblock,
        FLAG_NEEDS_CHECK,
        MAGIC,
        MAX_DATA_BLOCKS,
        MAX_TIME,
        METADATA_BLOCK_SECTORS,
        METADATA_MAX_BLOCKS,
        METADATA_MAX_RESERVE,
        SPACE_MAP_ROOT_SIZE,
        SUPERBLOCK_LOCATION,
        VERSION, //
    },
    superblock, //
};

/// How to open a pool's metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenParams {
    /// The size of the pool's data blocks in sectors.
    pub data_block_size: u32,
    /// Whether to format the device if its superblock is all zeroes.
    pub format: bool,
    /// Whether the device is read-only: then features do not matter that only writers must know.
    pub read_only: bool,
}

/// What is going on.
enum State {
    /// Changes are welcome.
    Open,
    /// The next commit's metadata are on the device, all but the superblock, which will hold these roots.
    Prepared {
        data_sm: SmRoot,
        metadata_sm: SmRoot,
    },
    /// A change has failed half-way. Only an abort helps.
    Undefined,
    /// An abort has failed.
    Failed,
}

/// The metadata of a pool.
///
/// Look-ups take `&self` and changes `&mut self`; a read-write lock around it makes this so between threads.
///
/// # Errors
///
/// Arguments are checked before anything is changed, so an error about them leaves the transaction as it
/// was. So does [`Error::NoDataSpace`]. After any other error from a change [`needs_abort`](Self::needs_abort)
/// is true: all look-ups, changes and commits give [`Error::NeedsAbort`] until [`abort`](Self::abort) has
/// given the transaction up. After an abort that fails, everything gives [`Error::Failed`].
///
/// # Commits
///
/// All that a device was told to write must be stable before the mappings to it are: the data device must be
/// flushed after the last mapping of a transaction was inserted, and before the superblock is written.
/// [`commit_with`](Self::commit_with) does all at once.
///
/// Whoever does not want to hold the lock while the data device is flushed calls
/// [`prepare_commit`](Self::prepare_commit) under the lock, flushes the data device with none or a shared
/// lock, and then calls [`commit`](Self::commit) under the lock. In between look-ups work, and changes give
/// [`Error::Prepared`] and do nothing.
pub struct Metadata<B: BlockManager> {
    pub(crate) bm: B,
    pub(crate) tm: TransactionManager,
    pub(crate) data_sm: DiskSpaceMap,
    pub(crate) mappings: MappingTree,
    pub(crate) details: DetailsTree,
    /// Where the metadata snapshot is, 0 for none.
    pub(crate) held_root: BlockNr,
    pub(crate) time: u32,
    pub(crate) transaction_id: u64,
    pub(crate) devices: Devices,
    /// The size of the data device in blocks, with what was added since the last commit.
    pub(crate) data_limit: u64,
    flags: u32,
    params: OpenParams,
    state: State,
    /// Whether there is something to commit.
    dirty: bool,
    /// The metadata blocks that are kept back for commits, and not reported as free.
    reserve: BlockNr,
    threshold: Option<BlockNr>,
}

/// What the superblock leads to.
struct Loaded {
    tm: TransactionManager,
    data_sm: DiskSpaceMap,
    mappings: MappingTree,
    details: DetailsTree,
    held_root: BlockNr,
    time: u32,
    transaction_id: u64,
    flags: u32,
}

impl<B: BlockManager> Metadata<B> {
    /// Opens the metadata on `bm`, or formats it where the superblock is all zeroes.
    ///
    /// Gives, in this order of checks: [`Error::Unformatted`] for all zeroes without leave to format;
    /// [`Error::Library`] for a superblock that says it lives elsewhere (ENOTBLK), or has another magic number
    /// (EILSEQ) or checksum (EILSEQ); [`Error::DataBlockSize`], [`Error::IncompatFeatures`],
    /// [`Error::CompatRoFeatures`], [`Error::Version`], [`Error::MetadataBlockSize`] (all EINVAL); and what
    /// reading the space maps gives.
    pub fn open(bm: B, params: OpenParams) -> Result<Self> {
        let Loaded {
            tm,
            data_sm,
            mappings,
            details,
            held_root,
            time,
            transaction_id,
            flags,
        } = if superblock::is_unformatted(&bm)? {
            if !params.format {
                return Err(Error::Unformatted);
            }
            format(&bm, &params)?
        } else {
            load(&bm, &params)?
        };
        let mut md = Self {
            data_limit: data_sm.nr_blocks(),
            bm,
            tm,
            data_sm,
            mappings,
            details,
            held_root,
            time,
            transaction_id,
            devices: Devices::new(),
            flags,
            params,
            state: State::Open,
            dirty: false,
            reserve: 0,
            threshold: None,
        };
        md.set_reserve();
        Ok(md)
    }

    /// Commits, unless that is not possible any more, in order to close the metadata: what remains is to drop
    /// them.
    ///
    /// Gives [`Error::DevicesOpen`] if devices are open, and nothing is committed. Any other error means that
    /// the commit failed: the metadata on the device are those of the last one.
    pub fn close(&mut self, flush_data: impl FnOnce() -> Result) -> Result {
        let open = self
            .devices
            .iter()
            .filter(|device| device.open_count > 0)
            .count();
        if open > 0 {
            return Err(Error::DevicesOpen(open));
        }
        match self.state {
            State::Open | State::Prepared { .. } if !self.bm.is_read_only() => {
                self.commit_with(flush_data)
            }
            _ => Ok(()),
        }
    }

    /// The block manager.
    pub fn bm(&self) -> &B {
        &self.bm
    }

    /// The number that programs which manage pools keep in the metadata.
    pub fn transaction_id(&self) -> Result<u64> {
        self.check_not_failed()?;
        Ok(self.transaction_id)
    }

    /// Changes the transaction id from `current` to `new`.
    ///
    /// Gives [`Error::TransactionId`] if it is not `current`.
    pub fn set_transaction_id(&mut self, current: u64, new: u64) -> Result {
        self.check_change()?;
        if self.transaction_id != current {
            return Err(Error::TransactionId {
                found: self.transaction_id,
                wanted: current,
            });
        }
        self.change(|md| {
            md.transaction_id = new;
            Ok(())
        })
    }

    /// How many snapshots have been taken in this pool.
    pub fn time(&self) -> u32 {
        self.time
    }

    /// Writes what the next superblock will refer to. Gives whether there is anything to commit; if so, the
    /// next thing to do, after the flush of the data device, is [`commit`](Self::commit).
    pub fn prepare_commit(&mut self) -> Result<bool> {
        match self.state {
            State::Prepared { .. } => return Ok(true),
            State::Open if !self.dirty => return Ok(false),
            _ => self.check_change()?,
        }
        self.change(|md| {
            for device in md.devices.iter().filter(|device| device.changed) {
                md.details.insert(
                    &mut md.tm.tx(&md.bm),
                    &mut Plain::new(),
                    &[device.id.key()],
                    device.details(),
                )?;
            }
            md.data_sm.commit(&mut md.tm.tx(&md.bm))?;
            let data_sm = md.data_sm.root();
            let metadata_sm = md.tm.pre_commit(&md.bm)?;
            md.state = State::Prepared {
                data_sm,
                metadata_sm,
            };
            Ok(())
        })?;
        Ok(true)
    }

    /// Makes all changes permanent: writes the superblock, after all else if
    /// [`prepare_commit`](Self::prepare_commit) has not done so.
    ///
    /// The caller has flushed the data device since the last mapping was inserted. Nothing is written if
    /// there are no changes.
    pub fn commit(&mut self) -> Result {
        if !self.prepare_commit()? {
            return Ok(());
        }
        let State::Prepared {
            data_sm,
            metadata_sm,
        } = core::mem::replace(&mut self.state, State::Undefined)
        else {
            return Err(Error::NeedsAbort);
        };

        let mut guard = self.bm.write(SUPERBLOCK_LOCATION, &superblock::VALIDATOR)?;
        let superblock = Superblock::of_mut(&mut guard)?;
        superblock.time = self.time.into();
        superblock.data_mapping_root = self.mappings.root().into();
        superblock.device_details_root = self.details.root().into();
        superblock.held_root = self.held_root.into();
        superblock.trans_id = self.transaction_id.into();
        superblock.flags = self.flags.into();
        superblock.data_space_map_root = sm_root_bytes(&data_sm);
        superblock.metadata_space_map_root = sm_root_bytes(&metadata_sm);
        self.tm.commit(&self.bm, guard)?;

        for device in self.devices.iter_mut() {
            device.changed = false;
        }
        self.devices.retain(|device| device.open_count > 0);
        self.state = State::Open;
        self.dirty = false;
        Ok(())
    }

    /// Commits, and calls `flush_data`, which flushes the data device, when the time has come for it. It is
    /// not called if there is nothing to commit.
    pub fn commit_with(&mut self, flush_data: impl FnOnce() -> Result) -> Result {
        if self.prepare_commit()? {
            flush_data()?;
            self.commit()?;
        }
        Ok(())
    }

    /// Gives up all changes since the last commit.
    ///
    /// Devices that are open stay so; [`thin_aborted_changes`](Self::thin_aborted_changes) tells whether they
    /// had changes. One that was created since the last commit does not exist any more, and gives
    /// [`Error::NoDevice`].
    ///
    /// If this fails, nothing but closing works any more.
    pub fn abort(&mut self) -> Result {
        self.check_not_failed()?;
        let result = self.roll_back();
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }

    fn roll_back(&mut self) -> Result {
        self.bm.reset();
        if superblock::is_unformatted(&self.bm)? {
            return Err(Error::Unformatted);
        }
        let loaded = load(&self.bm, &self.params)?;

        self.devices.retain(|device| device.open_count > 0);
        for device in self.devices.iter_mut().filter(|device| device.changed) {
            let open_count = device.open_count;
            *device = match loaded.details.lookup(&self.bm, &[device.id.key()])? {
                Some(details) => Device {
                    open_count,
                    aborted: true,
                    ..Device::existing(device.id, &details)
                },
                None => Device {
                    changed: false,
                    aborted: true,
                    gone: true,
                    ..*device
                },
            };
        }

        self.tm = loaded.tm;
        self.data_limit = loaded.data_sm.nr_blocks();
        self.data_sm = loaded.data_sm;
        self.mappings = loaded.mappings;
        self.details = loaded.details;
        self.held_root = loaded.held_root;
        self.time = loaded.time;
        self.transaction_id = loaded.transaction_id;
        // That a check is needed stays true, even if it could not be written.
        self.flags = loaded.flags | (self.flags & FLAG_NEEDS_CHECK);
        if let Some(blocks) = self.threshold {
            self.tm.set_threshold(blocks);
        }
        self.set_reserve();
        self.state = State::Open;
        self.dirty = false;
        Ok(())
    }

    /// Whether a change has failed and nothing works until an [`abort`](Self::abort).
    pub fn needs_abort(&self) -> bool {
        matches!(self.state, State::Undefined)
    }

    /// Whether an abort has failed and nothing works any more.
    pub fn is_failed(&self) -> bool {
        matches!(self.state, State::Failed)
    }

    /// Whether the metadata must be checked before they may be written.
    pub fn needs_check(&self) -> bool {
        self.flags & FLAG_NEEDS_CHECK != 0
    }

    /// Notes, also in the superblock, that the metadata must be checked before they may be written.
    ///
    /// The superblock is written at once. If the device does not take it now, that is no error: it is kept
    /// for the next flush.
    pub fn set_needs_check(&mut self) -> Result {
        self.check_not_failed()?;
        self.flags |= FLAG_NEEDS_CHECK;
        if self.needs_abort() {
            // What the superblock in memory says may not be permanent.
            return Err(Error::NeedsAbort);
        }
        let guard = self.superblock_with_flags()?;
        if self.bm.commit_superblock(guard).is_err() {
            self.superblock_with_flags()?;
        }
        Ok(())
    }

    fn superblock_with_flags(&self) -> Result<B::WriteGuard<'_>> {
        let mut guard = self.bm.write(SUPERBLOCK_LOCATION, &superblock::VALIDATOR)?;
        Superblock::of_mut(&mut guard)?.flags = self.flags.into();
        Ok(guard)
    }

    /// Refuses or allows changes of the metadata device.
    pub fn set_read_only(&self, read_only: bool) {
        self.bm.set_read_only(read_only);
    }

    /// The size of the data device in blocks.
    pub fn nr_data_blocks(&self) -> Result<u64> {
        self.check_not_failed()?;
        Ok(self.data_sm.nr_blocks())
    }

    /// How many data blocks are free, with those that were freed since the last commit.
    pub fn free_data_blocks(&self) -> Result<u64> {
        self.check_not_failed()?;
        Ok(self.data_sm.nr_free())
    }

    /// The size of the metadata device in blocks.
    pub fn nr_metadata_blocks(&self) -> Result<u64> {
        self.check_not_failed()?;
        Ok(self.tm.nr_blocks())
    }

    /// How many metadata blocks are free, without those that are kept back for commits: a tenth of the device,
    /// 16 MiB at most.
    pub fn free_metadata_blocks(&self) -> Result<u64> {
        self.check_not_failed()?;
        Ok(self.tm.nr_free().saturating_sub(self.reserve))
    }

    /// Grows the data device to `new` blocks.
    ///
    /// Gives [`Error::Shrink`] if it is larger.
    pub fn resize_data(&mut self, new: u64) -> Result {
        self.check_change()?;
        let Some(extra) = extra_blocks(self.data_limit, new)? else {
            return Ok(());
        };
        if new > MAX_DATA_BLOCKS {
            return Err(Error::TooManyDataBlocks(new));
        }
        self.change(|md| {
            md.data_sm.extend(&mut md.tm.tx(&md.bm), extra)?;
            md.data_limit = new;
            Ok(())
        })
    }

    /// Grows the metadata device to `new` blocks.
    ///
    /// Gives [`Error::Shrink`] if it is larger.
    pub fn resize_metadata(&mut self, new: BlockNr) -> Result {
        self.check_change()?;
        let Some(extra) = extra_blocks(self.tm.nr_blocks(), new)? else {
            return Ok(());
        };
        self.change(|md| {
            md.tm.extend(&md.bm, extra)?;
            md.set_reserve();
            Ok(())
        })
    }

    fn set_reserve(&mut self) {
        self.reserve = (self.tm.nr_blocks() / 10).min(METADATA_MAX_RESERVE);
    }

    /// Watches the number of free metadata blocks: [`threshold_crossed`](Self::threshold_crossed) will tell
    /// when it has fallen to `blocks` or below.
    pub fn set_threshold(&mut self, blocks: BlockNr) -> Result {
        self.check_not_failed()?;
        self.threshold = Some(blocks);
        self.tm.set_threshold(blocks);
        Ok(())
    }

    /// Whether the number of free metadata blocks has fallen to the threshold since the last call. It must
    /// rise above it before this is true again.
    pub fn threshold_crossed(&mut self) -> bool {
        self.tm.threshold_crossed()
    }

    /// Starts to read what look-ups that do not wait have missed.
    pub fn issue_prefetches(&self) {
        if !self.is_failed() {
            self.tm.prefetches().issue(&self.bm);
        }
    }

    /// Whether there is anything to commit.
    pub fn needs_commit(&self) -> bool {
        self.dirty
    }

    pub(crate) fn check_not_failed(&self) -> Result {
        match self.state {
            State::Failed => Err(Error::Failed),
            _ => Ok(()),
        }
    }

    pub(crate) fn check_read(&self) -> Result {
        match self.state {
            State::Failed => Err(Error::Failed),
            State::Undefined => Err(Error::NeedsAbort),
            State::Open | State::Prepared { .. } => Ok(()),
        }
    }

    pub(crate) fn check_change(&self) -> Result {
        self.check_read()?;
        if matches!(self.state, State::Prepared { .. }) {
            return Err(Error::Prepared);
        }
        if self.bm.is_read_only() {
            return Err(Error::ReadOnly);
        }
        Ok(())
    }

    /// Makes a change, whose failure leaves the transaction undefined.
    pub(crate) fn change<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        match f(self) {
            Ok(x) => {
                self.dirty = true;
                Ok(x)
            }
            Err(Error::NoDataSpace) => Err(Error::NoDataSpace),
            Err(e) => {
                self.dirty = true;
                self.state = State::Undefined;
                Err(e)
            }
        }
    }
}

/// By how much a device grows; `None` if it does not.
fn extra_blocks(from: u64, to: u64) -> Result<Option<u64>> {
    match to.checked_sub(from) {
        Some(0) => Ok(None),
        Some(extra) => Ok(Some(extra)),
        None => Err(Error::Shrink { from, to }),
    }
}

fn sm_root_bytes(root: &SmRoot) -> [u8; SPACE_MAP_ROOT_SIZE] {
    let mut bytes = [0; SPACE_MAP_ROOT_SIZE];
    for (to, from) in bytes.iter_mut().zip(root.as_bytes()) {
        *to = *from;
    }
    bytes
}

/// Makes new metadata: no devices, and no data blocks.
fn format<B: BlockManager>(bm: &B, params: &OpenParams) -> Result<Loaded> {
    let mut tm = TransactionManager::create(bm, SUPERBLOCK_LOCATION)?;
    let mut data_sm = DiskSpaceMap::create(&mut tm.tx(bm), 0)?;
    let mappings = MappingTree::empty(&mut tm.tx(bm))?;
    let details = DetailsTree::empty(&mut tm.tx(bm))?;

    data_sm.commit(&mut tm.tx(bm))?;
    let metadata_sm_root = tm.pre_commit(bm)?;
    let mut guard = bm.write_zero(SUPERBLOCK_LOCATION, &superblock::VALIDATOR)?;
    let superblock = Superblock::of_mut(&mut guard)?;
    superblock.magic = MAGIC.into();
    superblock.version = VERSION.into();
    superblock.data_space_map_root = sm_root_bytes(&data_sm.root());
    superblock.metadata_space_map_root = sm_root_bytes(&metadata_sm_root);
    superblock.data_mapping_root = mappings.root().into();
    superblock.device_details_root = details.root().into();
    superblock.data_block_size = params.data_block_size.into();
    superblock.metadata_block_size = METADATA_BLOCK_SECTORS.into();
    superblock.metadata_nr_blocks = bm.nr_blocks().min(METADATA_MAX_BLOCKS).into();
    tm.commit(bm, guard)?;

    Ok(Loaded {
        tm,
        data_sm,
        mappings,
        details,
        held_root: 0,
        time: 0,
        transaction_id: 0,
        flags: 0,
    })
}

/// Reads the metadata of the last commit.
fn load<B: BlockManager>(bm: &B, params: &OpenParams) -> Result<Loaded> {
    let superblock = Superblock::read(bm, SUPERBLOCK_LOCATION)?;
    let data_block_size = superblock.data_block_size.get();
    if data_block_size != params.data_block_size {
        return Err(Error::DataBlockSize {
            found: data_block_size,
            wanted: params.data_block_size,
        });
    }
    superblock.check_format(params.read_only)?;
    let time = superblock.time.get();
    if time > MAX_TIME {
        return Err(persistent_data::Error::Corrupt(
            SUPERBLOCK_LOCATION,
            Corruption::SuperblockField,
        )
        .into());
    }

    let tm = TransactionManager::open(bm, &superblock.metadata_sm_root()?)?;
    superblock.check_roots(tm.nr_blocks())?;
    let data_sm = DiskSpaceMap::open(bm, &superblock.data_sm_root()?)?;
    Ok(Loaded {
        tm,
        data_sm,
        mappings: MappingTree::from_root(superblock.data_mapping_root.get()),
        details: DetailsTree::from_root(superblock.device_details_root.get()),
        held_root: superblock.held_root.get(),
        time,
        transaction_id: superblock.trans_id.get(),
        flags: superblock.flags.get(),
    })
}
