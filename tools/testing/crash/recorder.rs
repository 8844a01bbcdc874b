// SPDX-License-Identifier: GPL-2.0

//! A device that notes what is done to it, and fails when it is told to.

use std::{
    cell::{
        Cell,
        RefCell, //
    },
    rc::Rc,
    sync::Arc,
};

use persistent_data::{
    block::{
        BlockData,
        BlockNr, //
    },
    cached::Device,
    error::{
        Error,
        Result, //
    },
    memory::Io,
};

use crate::{
    check::Content,
    image::{
        Blocks,
        Disk,
        Written, //
    },
    model::Model,
};

const EIO: i32 = 5;

/// What a commit is of.
pub struct Commit {
    /// The pool.
    pub model: Model,
    /// What an image of it holds.
    pub content: Content,
}

impl Commit {
    /// The commit of a pool.
    pub fn new(model: &Model, nr_metadata: BlockNr) -> Rc<Self> {
        Rc::new(Self {
            model: model.clone(),
            content: Content::of_model(model, nr_metadata),
        })
    }
}

/// What a superblock was written for; `None` before there is one.
pub type Meaning = Option<Rc<Commit>>;

/// What happened.
#[derive(Clone)]
pub enum Event {
    /// A block was written, or the device failed to: nobody knows how much of it got there.
    Write(Write),
    /// What was written is stable.
    Flush,
    /// The device has another size.
    Size(BlockNr),
    /// A commit was reported to be complete, of this.
    Committed(Rc<Commit>),
}

/// A write.
#[derive(Clone)]
pub struct Write {
    /// Where.
    pub block: BlockNr,
    /// What.
    pub data: Arc<Written>,
    /// What it means, if it is a superblock.
    pub meaning: Meaning,
    /// Whether the device said that it failed.
    pub has_failed: bool,
}

/// What shall fail.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// What kind of I/O.
    pub io: Io,
    /// How many succeed before.
    pub after: u64,
    /// Whether all of this kind fail from then on.
    pub is_lasting: bool,
}

/// The device.
pub struct Recorder {
    nr_blocks: Cell<BlockNr>,
    disk: RefCell<Disk>,
    events: RefCell<Vec<Event>>,
    fault: Cell<Option<Fault>>,
    has_failed: Cell<bool>,
    /// What the superblock that the device shows was written for.
    shown: RefCell<Meaning>,
    /// What the next superblock will be written for.
    next: RefCell<Meaning>,
}

impl Recorder {
    /// A device with the content of `disk`, whose superblock means `shown`. It can grow to `limit` blocks.
    pub fn new(mut disk: Disk, limit: BlockNr, shown: Meaning) -> Self {
        let nr_blocks = disk.nr_blocks();
        disk.resize(limit.max(nr_blocks));
        Self {
            nr_blocks: Cell::new(nr_blocks),
            disk: RefCell::new(disk),
            events: RefCell::default(),
            fault: Cell::new(None),
            has_failed: Cell::new(false),
            shown: RefCell::new(shown),
            next: RefCell::default(),
        }
    }

    /// Changes the size; below the limit, but not below what it was.
    pub fn grow(&self, nr_blocks: BlockNr) {
        self.nr_blocks.set(nr_blocks);
        self.events.borrow_mut().push(Event::Size(nr_blocks));
    }

    /// The most blocks that there may be.
    pub fn limit(&self) -> BlockNr {
        self.disk.borrow().nr_blocks()
    }

    /// Runs `f` with as many blocks as there may ever be.
    pub fn at_limit<T>(&self, f: impl FnOnce() -> T) -> T {
        let nr_blocks = self.nr_blocks.replace(self.limit());
        let result = f();
        self.nr_blocks.set(nr_blocks);
        result
    }

    /// Has I/O fail, or not any more. Says whether any has failed since the last call.
    pub fn set_fault(&self, fault: Option<Fault>) -> bool {
        self.fault.set(fault);
        self.has_failed.replace(false)
    }

    /// Whether I/O is still to fail.
    pub fn has_fault(&self) -> bool {
        self.fault.get().is_some()
    }

    /// Whether any I/O has failed since the fault was set.
    pub fn has_failed(&self) -> bool {
        self.has_failed.get()
    }

    /// What the superblock that the device shows was written for.
    pub fn shown(&self) -> Meaning {
        self.shown.borrow().clone()
    }

    /// Says what the next superblock will be written for.
    pub fn set_next(&self, commit: Rc<Commit>) {
        *self.next.borrow_mut() = Some(commit);
    }

    /// Notes that a commit was reported to be complete.
    pub fn committed(&self, commit: Rc<Commit>) {
        self.events.borrow_mut().push(Event::Committed(commit));
    }

    /// All that happened.
    pub fn events(&self) -> Vec<Event> {
        self.events.borrow().clone()
    }

    /// What the device shows.
    pub fn disk(&self) -> Disk {
        let mut disk = self.disk.borrow().clone();
        disk.resize(self.nr_blocks.get());
        disk
    }

    fn start(&self, io: Io) -> Result {
        match self.fault.get() {
            Some(fault) if fault.io == io => {
                if fault.after > 0 {
                    self.fault.set(Some(Fault {
                        after: fault.after - 1,
                        ..fault
                    }));
                    return Ok(());
                }
                if !fault.is_lasting {
                    self.fault.set(None);
                }
                self.has_failed.set(true);
                Err(Error::Io(EIO))
            }
            _ => Ok(()),
        }
    }

    /// What a superblock means: what was announced, unless only its flags differ from those of the one before.
    fn meaning(&self, data: &BlockData) -> Meaning {
        let disk = self.disk.borrow();
        let is_same = disk.block(0)[8..] == data[8..];
        match is_same {
            true => self.shown(),
            false => self.next.borrow().clone(),
        }
    }
}

impl Device for Recorder {
    fn nr_blocks(&self) -> BlockNr {
        self.nr_blocks.get()
    }

    fn read(&self, block: BlockNr, data: &mut BlockData) -> Result {
        if block >= self.nr_blocks.get() {
            return Err(Error::OutOfBounds(block));
        }
        self.start(Io::Read)?;
        data.copy_from_slice(self.disk.borrow().block(block));
        Ok(())
    }

    fn write(&self, block: BlockNr, data: &BlockData) -> Result {
        if block >= self.nr_blocks.get() {
            return Err(Error::OutOfBounds(block));
        }
        let result = self.start(Io::Write);
        let written = Written::new(data);
        let meaning = match block {
            0 => self.meaning(data),
            _ => None,
        };
        if result.is_ok() {
            self.disk.borrow_mut().set(block, Some(written.clone()));
            if block == 0 {
                self.shown.replace(meaning.clone());
            }
        }
        self.events.borrow_mut().push(Event::Write(Write {
            block,
            data: written,
            meaning,
            has_failed: result.is_err(),
        }));
        result
    }

    fn flush(&self) -> Result {
        self.start(Io::Flush)?;
        self.events.borrow_mut().push(Event::Flush);
        Ok(())
    }
}

/// A recorder that several use: a pool, and who watches it.
#[derive(Clone)]
pub struct Handle(pub Rc<Recorder>);

impl Device for Handle {
    fn nr_blocks(&self) -> BlockNr {
        self.0.nr_blocks()
    }

    fn read(&self, block: BlockNr, data: &mut BlockData) -> Result {
        self.0.read(block, data)
    }

    fn write(&self, block: BlockNr, data: &BlockData) -> Result {
        self.0.write(block, data)
    }

    fn flush(&self) -> Result {
        self.0.flush()
    }
}
