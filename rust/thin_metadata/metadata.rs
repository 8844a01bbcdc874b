// SPDX-License-Identifier: GPL-2.0

//! A pool's metadata as a whole: opening and formatting, and what the superblock holds.

use persistent_data::{
    block::BlockNr,
    block_manager::BlockManager,
    btree::MAX_DEPTH,
    error::Corruption,
    platform::atomic::AtomicFlag,
    space_map::DiskSpaceMap,
    transaction_manager::TransactionManager, //
};

use crate::{
    device::Devices,
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
        MAX_TIME,
        METADATA_BLOCK_SECTORS,
        METADATA_MAX_BLOCKS,
        SUPERBLOCK_LOCATION,
        VERSION, //
    },
    superblock::{
        self,
        sm_root_bytes, //
    },
    transaction::State, //
};

/// The most blocks of the metadata device that a change holds at a time.
///
/// What is in a row is held while the rows after it are worked on:
///
/// | what | valid | accepted |
/// | --- | --- | --- |
/// | the way through the upper level of the mapping tree, which only the release of a metadata snapshot holds all of | 4 | [`MAX_DEPTH`] |
/// | the way to a leaf of a device's mappings, whose data blocks get one owner more or less | 5 | [`MAX_DEPTH`] |
/// | the way to a leaf of the data space map's tree of counts, and two more nodes while one is split | 5 + 2 | [`MAX_DEPTH`] + 2 |
/// | likewise for the metadata space map, which counts each node that the former takes | 4 + 2 | [`MAX_DEPTH`] + 2 |
///
/// No valid tree is deeper, as nodes are at least a third full, and there are no more than 2^24 devices and
/// [`METADATA_MAX_BLOCKS`] nodes; but trees are accepted that are. When entries are removed, five nodes of a tree are
/// held at most: one, its parent, a child, and the child's neighbours. Bitmaps are let go before a tree is changed. A
/// node that is copied counts once: its original is let go before the copy is counted.
pub const MAX_HELD: u32 = 4 * MAX_DEPTH as u32 + 2 + 2;

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
/// Whoever wants to let others look something up while devices are written to goes in steps:
///
/// | step | lock | what |
/// | --- | --- | --- |
/// | [`prepare_commit`](Self::prepare_commit) | exclusive | completes the metadata in memory |
/// | [`flush`](Self::flush), and a flush of the data device | shared | writes it |
/// | [`write_superblock`](Self::write_superblock) | exclusive | completes the superblock in memory |
/// | [`flush`](Self::flush) | shared | writes it |
/// | [`finish_commit`](Self::finish_commit) | exclusive | begins the next transaction |
///
/// In between look-ups work, and changes give [`Error::Prepared`] and do nothing. [`commit`](Self::commit) goes
/// on from any of these steps to the end, and [`abort`](Self::abort) gives up. After a
/// [`flush`](Self::flush) that fails, only the latter is possible.
pub struct Metadata<B: BlockManager> {
    pub(crate) bm: B,
    pub(crate) tm: TransactionManager,
    pub(crate) data_sm: DiskSpaceMap,
    pub(crate) mappings: MappingTree,
    pub(crate) details: DetailsTree,
    /// Where the metadata snapshot is, 0 for none.
    pub(crate) held_root: BlockNr,
    /// Whether a metadata snapshot was released since the last commit.
    pub(crate) released: bool,
    pub(crate) time: u32,
    pub(crate) transaction_id: u64,
    pub(crate) devices: Devices,
    /// The size of the data device in blocks, with what was added since the last commit.
    pub(crate) data_limit: u64,
    pub(crate) flags: u32,
    pub(crate) params: OpenParams,
    pub(crate) state: State,
    /// Changes with each step of a commit, so that flushes before it can be told from those after.
    pub(crate) step: u64,
    /// Whether a flush of this transaction has failed. What it had to write may be lost, so only an abort helps.
    pub(crate) flush_failed: AtomicFlag,
    /// Whether there is something to commit.
    pub(crate) dirty: bool,
    /// Whether the device may show a superblock that a crash can take away: a commit has failed while it was
    /// written, or whoever had the pool open before may have left it so.
    pub(crate) unstable: bool,
    /// The metadata blocks that are kept back for commits, and not reported as free.
    pub(crate) reserve: BlockNr,
    pub(crate) threshold: Option<BlockNr>,
}

/// What the superblock leads to.
pub(crate) struct Loaded {
    pub(crate) tm: TransactionManager,
    pub(crate) data_sm: DiskSpaceMap,
    pub(crate) mappings: MappingTree,
    pub(crate) details: DetailsTree,
    pub(crate) held_root: BlockNr,
    pub(crate) time: u32,
    pub(crate) transaction_id: u64,
    pub(crate) flags: u32,
}

impl<B: BlockManager> Metadata<B> {
    /// Opens the metadata on `bm`, or formats it where the superblock is all zeroes.
    ///
    /// Gives, in this order of checks: [`Error::Unformatted`] for all zeroes without leave to format;
    /// [`Error::Library`] for a superblock that says it lives elsewhere (ENOTBLK), or has another magic number
    /// (EILSEQ) or checksum (EILSEQ); [`Error::DataBlockSize`], [`Error::IncompatFeatures`],
    /// [`Error::CompatRoFeatures`], [`Error::Version`], [`Error::MetadataBlockSize`] (all EINVAL); what reading the
    /// space maps gives; and [`SuperblockFree`](persistent_data::error::Corruption::SuperblockFree) (EILSEQ).
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
            let loaded = load(&bm, &params)?;
            loaded.tm.check_superblock(&bm)?;
            loaded
        };
        let mut md = Self {
            data_limit: data_sm.nr_blocks(),
            bm,
            tm,
            data_sm,
            mappings,
            details,
            held_root,
            released: false,
            time,
            transaction_id,
            devices: Devices::new(),
            flags,
            params,
            state: State::Open,
            step: 0,
            flush_failed: AtomicFlag::new(false),
            dirty: false,
            unstable: true,
            reserve: 0,
            threshold: None,
        };
        md.set_reserve();
        Ok(md)
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

    /// Whether the metadata must be checked before they may be written.
    pub fn needs_check(&self) -> bool {
        self.flags & FLAG_NEEDS_CHECK != 0
    }

    /// Notes, also in the superblock, that the metadata must be checked before they may be written.
    ///
    /// The superblock is written at once. If the device does not take it now, that is no error: it is kept
    /// for the next flush. What else was changed cannot be committed then.
    pub fn set_needs_check(&mut self) -> Result {
        self.check_not_failed()?;
        self.flags |= FLAG_NEEDS_CHECK;
        if self.needs_abort() {
            // What the superblock in memory says may not be permanent.
            return Err(Error::NeedsAbort);
        }
        let guard = self.superblock_with_flags()?;
        match self.bm.commit_superblock(guard) {
            Ok(()) => self.unstable = false,
            Err(e) => {
                self.note_failed_flush(e);
                self.superblock_with_flags()?;
            }
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

    /// Starts to read what look-ups that do not wait have missed.
    pub fn issue_prefetches(&self) {
        if !self.is_failed() {
            self.tm.prefetches().issue(&self.bm);
        }
    }
}

/// Makes new metadata: no devices, and no data blocks.
pub(crate) fn format<B: BlockManager>(bm: &B, params: &OpenParams) -> Result<Loaded> {
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
pub(crate) fn load<B: BlockManager>(bm: &B, params: &OpenParams) -> Result<Loaded> {
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

    superblock.check_space_map_roots()?;
    let metadata_sm_root = superblock.metadata_sm_root()?;
    let tm = TransactionManager::open(bm, SUPERBLOCK_LOCATION, &metadata_sm_root)?;
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
