// SPDX-License-Identifier: GPL-2.0

//! Which records may follow each other.

use crate::stream::{
    end::Counts,
    frame::SECTOR,
    Header, //
};

/// Which records may follow each other, for those who write and those who read them.
#[derive(Debug)]
pub(super) struct Order {
    size: u64,
    block_size: u64,
    /// Where the next record begins at the earliest.
    next: u64,
    /// What was there so far.
    counts: Counts,
}

impl Order {
    /// What is wrong with the header; otherwise the order of its records.
    pub(super) fn new(header: &Header) -> Result<Self, String> {
        let Header {
            size,
            block_size,
            start,
            data,
            ..
        } = *header;
        if [size, block_size, start]
            .iter()
            .any(|n| !n.is_multiple_of(SECTOR))
            || block_size == 0
        {
            return Err(format!(
                "a volume of {size} bytes in blocks of {block_size}, from byte {start} on, is not made of sectors"
            ));
        }
        let Some(room) = size.checked_sub(start) else {
            return Err(format!(
                "byte {start} to start at is beyond the volume's {size} bytes"
            ));
        };
        if data > room {
            return Err(format!("{data} bytes of data do not fit into {room}"));
        }
        Ok(Self {
            size,
            block_size,
            next: start,
            counts: Counts::default(),
        })
    }

    /// What there was so far.
    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// What is wrong with data as the next record, in this number of frames.
    pub(super) fn data(&mut self, offset: u64, len: u64, frames: u64) -> Result<(), String> {
        self.follow(offset, len, SECTOR)?;
        add(&mut self.counts.data_frames, frames)?;
        add(&mut self.counts.data, len)
    }

    /// What is wrong with a discard as the next record.
    pub(super) fn discard(&mut self, offset: u64, len: u64) -> Result<(), String> {
        self.follow(offset, len, self.block_size)?;
        add(&mut self.counts.discards, 1)?;
        add(&mut self.counts.discarded, len)
    }

    fn follow(&mut self, offset: u64, len: u64, multiple: u64) -> Result<(), String> {
        let end = offset.checked_add(len).filter(|end| *end <= self.size);
        let Some(end) = end else {
            return Err(format!(
                "{len} bytes at {offset} are not inside the volume's {}",
                self.size
            ));
        };
        if len == 0 {
            return Err(format!("the record at {offset} is empty"));
        }
        if offset < self.next {
            return Err(format!(
                "a record at {offset} comes too late: {} was reached",
                self.next
            ));
        }
        let whole = |n: u64| n.is_multiple_of(multiple);
        if !whole(offset) || !(whole(end) || end == self.size) {
            return Err(format!(
                "{len} bytes at {offset} are not made of pieces of {multiple}"
            ));
        }
        self.next = end;
        Ok(())
    }
}

/// The records do not overlap, so their sum is no larger than the volume.
fn add(count: &mut u64, n: u64) -> Result<(), String> {
    *count = count.checked_add(n).ok_or("there is too much to count")?;
    Ok(())
}
