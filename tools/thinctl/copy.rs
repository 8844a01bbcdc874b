// SPDX-License-Identifier: GPL-2.0

//! From lists of changes to data, and from data to a volume.

use crate::{
    device::{
        Buffer,
        Device,
        CHUNK, //
    },
    error::{
        Error,
        Result, //
    },
    extents::{
        Extents,
        Kind, //
    },
    pool::Pool,
    room::Room,
    signals, //
};

/// How much is written between two notes of how far it is, in bytes.
pub const CHECKPOINT: u64 = 256 << 20;

/// A part of a volume that is dealt with at once, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// What has become of it.
    pub kind: Kind,
    /// Where it begins.
    pub offset: u64,
    /// How long it is; [`CHUNK`] at most if it is mapped.
    pub len: u64,
}

/// Calls `f` for all of `extents` from `start` on and before `size`, all in bytes.
pub fn for_chunks(
    extents: &mut Extents,
    block_size: u64,
    start: u64,
    size: u64,
    mut f: impl FnMut(Chunk) -> Result,
) -> Result {
    for extent in extents.iter()? {
        let extent = extent?;
        let end = extent.end().saturating_mul(block_size).min(size);
        let mut offset = extent.begin.saturating_mul(block_size).max(start);
        while offset < end {
            signals::check()?;
            let left = end.saturating_sub(offset);
            let len = match extent.kind {
                // Chunks begin at multiples of their size, whatever was dealt with before.
                Kind::Mapped => left.min((CHUNK as u64).saturating_sub(offset % CHUNK as u64)),
                Kind::Unmapped => left,
            };
            f(Chunk {
                kind: extent.kind,
                offset,
                len,
            })?;
            offset = offset.saturating_add(len);
        }
    }
    Ok(())
}

/// How many bytes of data [`for_chunks`] comes by.
pub fn data_bytes(extents: &mut Extents, block_size: u64, start: u64, size: u64) -> Result<u64> {
    let mut total = 0u64;
    for_chunks(extents, block_size, start, size, |chunk| {
        if chunk.kind == Kind::Mapped {
            total = total.saturating_add(chunk.len);
        }
        Ok(())
    })?;
    Ok(total)
}

/// How many blocks of another size, in bytes, the data lie in that [`for_chunks`] comes by.
pub fn blocks_of(
    extents: &mut Extents,
    block_size: u64,
    size: u64,
    other_size: u64,
) -> Result<u64> {
    let other_size = other_size.max(1);
    let (mut count, mut counted_to) = (0u64, 0);
    for extent in extents.iter()? {
        let extent = extent?;
        let begin = extent.begin.saturating_mul(block_size);
        let end = extent.end().saturating_mul(block_size).min(size);
        if extent.kind == Kind::Mapped && begin < end {
            let first = (begin / other_size).max(counted_to);
            counted_to = end.div_ceil(other_size).max(counted_to);
            count = count.saturating_add(counted_to.saturating_sub(first));
        }
    }
    Ok(count)
}

/// The largest blocks of a pool that does not zero new ones, in bytes: it takes as much memory to write them whole.
const MAX_UNZEROED: u64 = 64 << 20;

/// A volume that changes are written to.
pub struct Target {
    device: Device,
    /// The size of its pool's blocks in bytes.
    block_size: u64,
    buffer: Buffer,
    can_discard: bool,
    /// Whether zeroes are written that may take up blocks.
    overwrites: bool,
    room: Room,
    /// What is read where nothing is mapped, unless that is zeroes.
    origin: Option<Origin>,
    /// For a pool that does not zero new blocks.
    filler: Option<Filler>,
}

/// An external origin.
struct Origin {
    device: Device,
    buffer: Buffer,
}

/// Writes whole blocks, so that what they held before is not seen in the rest of them.
struct Filler {
    buffer: Buffer,
    /// The last one.
    filled: Option<u64>,
}

impl Target {
    /// A volume of `pool`, and its external origin, if it has one.
    pub fn open(device: Device, pool: &Pool, origin: Option<Device>, room: Room) -> Result<Self> {
        let origin = origin.map(|device| Origin {
            device,
            buffer: Buffer::new(),
        });
        Ok(Self {
            origin,
            ..Self::over(device, pool, room)?
        })
    }

    /// A volume of `pool` that reads as zeroes where nothing is mapped.
    pub fn over(device: Device, pool: &Pool, room: Room) -> Result<Self> {
        let filler = match pool.skips_zeroing {
            false => None,
            true if pool.block_size > MAX_UNZEROED => {
                return Err(Error::Refused(format!(
                    "pool {} does not zero its blocks, which are too large to be written whole",
                    pool.name
                )))
            }
            true => Some(Filler {
                buffer: Buffer::with_len(pool.block_size as usize),
                filled: None,
            }),
        };
        Ok(Self {
            device,
            block_size: pool.block_size.max(1),
            buffer: Buffer::new(),
            can_discard: true,
            overwrites: false,
            room,
            origin: None,
            filler,
        })
    }

    /// For a volume with an external origin that is to read as zeroes all the same, or in a pool that ignores discards:
    /// nothing is unmapped.
    pub fn overwrites(&mut self) {
        self.can_discard = false;
        self.overwrites = true;
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether volumes of a pool, if writing to them was cut off, may show what their blocks held before. One write that
    /// has a whole block is all there or not at all.
    pub fn is_spoilt_when_cut_off(pool: &Pool) -> bool {
        pool.skips_zeroing && pool.block_size > CHUNK as u64
    }

    /// Writes `data`.
    pub fn write(&mut self, mut offset: u64, data: &[u8]) -> Result {
        for part in data.chunks(CHUNK) {
            self.prepare(offset, part.len() as u64)?;
            let buffer = self.buffer.get(part.len());
            buffer.copy_from_slice(part);
            self.device
                .write(offset, buffer)
                .map_err(|e| self.room.explain(e))?;
            offset = offset.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    /// Copies from another device.
    pub fn copy(&mut self, from: &Device, offset: u64, len: usize) -> Result {
        self.prepare(offset, len as u64)?;
        let buffer = self.buffer.get(len);
        from.read(offset, buffer)?;
        self.device
            .write(offset, buffer)
            .map_err(|e| self.room.explain(e))
    }

    /// To be called before something is written.
    fn prepare(&mut self, offset: u64, len: u64) -> Result {
        self.room.check_write(offset, len)?;
        let Some(filler) = &mut self.filler else {
            return Ok(());
        };
        let end = offset.saturating_add(len);
        for block in [
            offset / self.block_size,
            end.saturating_sub(1) / self.block_size,
        ] {
            let block_begin = block.saturating_mul(self.block_size);
            let block_end = block_begin
                .saturating_add(self.block_size)
                .min(self.device.size);
            let is_whole = offset <= block_begin && block_end <= end;
            if is_whole || filler.filled == Some(block) {
                continue;
            }
            let buffer = filler
                .buffer
                .get(block_end.saturating_sub(block_begin) as usize);
            self.device.read(block_begin, buffer)?;
            self.device
                .write(block_begin, buffer)
                .map_err(|e| self.room.explain(e))?;
            filler.filled = Some(block);
        }
        Ok(())
    }

    /// Unmaps what can be unmapped, and makes sure of nothing.
    pub fn unmap(&mut self, offset: u64, len: u64) -> Result {
        self.can_discard = self.can_discard && self.device.discard(offset, len)?;
        Ok(())
    }

    /// Makes sure that what is read is what is where nothing is mapped: whole blocks are unmapped where that is possible.
    pub fn discard(&mut self, offset: u64, len: u64) -> Result {
        let end = offset.saturating_add(len).min(self.device.size);
        // Where the first and the last whole block begin and end. The last block of a volume counts as whole.
        let first = offset.next_multiple_of(self.block_size).min(end);
        let last = if end == self.device.size {
            end
        } else {
            (end / self.block_size)
                .saturating_mul(self.block_size)
                .max(first)
        };
        self.clear(offset, first)?;
        if last > first {
            self.can_discard =
                self.can_discard && self.device.discard(first, last.saturating_sub(first))?;
            // The block layer cuts discards into pieces that fit blocks only if their size is a power of two, and a
            // part of a block is not unmapped.
            if !self.can_discard
                || !self.block_size.is_power_of_two()
                || last % self.block_size != 0
            {
                self.clear(first, last)?;
            }
        }
        self.clear(last, end)
    }

    /// Writes zeroes, or what the external origin has, where there is something else.
    fn clear(&mut self, mut offset: u64, end: u64) -> Result {
        while offset < end {
            signals::check()?;
            let len = end.saturating_sub(offset).min(CHUNK as u64);
            let buffer = self.buffer.get(len as usize);
            self.device.read(offset, buffer)?;
            let changes = match &mut self.origin {
                None => {
                    let changes = buffer.iter().any(|&byte| byte != 0);
                    buffer.fill(0);
                    changes
                }
                Some(origin) => {
                    let wanted = origin.read(offset, len)?;
                    let changes = buffer != wanted;
                    buffer.copy_from_slice(wanted);
                    changes
                }
            };
            if changes {
                if self.overwrites {
                    // It takes a block.
                    self.room.check_write(offset, len)?;
                }
                let buffer = self.buffer.get(len as usize);
                self.device
                    .write(offset, buffer)
                    .map_err(|e| self.room.explain(e))?;
            }
            offset = offset.saturating_add(len);
        }
        Ok(())
    }

    /// Makes all that was written stable, with the mappings to it.
    pub fn flush(&self) -> Result {
        self.device.flush().map_err(|e| self.room.explain(e))
    }
}

impl Origin {
    /// What a volume shows of it where nothing is mapped: zeroes after its end.
    fn read(&mut self, offset: u64, len: u64) -> Result<&[u8]> {
        let there = self.device.size.saturating_sub(offset).min(len);
        let buffer = self.buffer.get(len as usize);
        buffer.fill(0);
        if let Some(part) = buffer.get_mut(..there as usize) {
            self.device.read(offset, part)?;
        }
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::home::Home;

    /// What is to be done for each sector, by [`for_chunks`].
    fn sectors(
        blocks: &[Option<Kind>],
        sectors_per_block: u64,
        start: u64,
        size: u64,
    ) -> Vec<Option<Kind>> {
        let mut extents = listed(blocks);
        let mut found = vec![None; (size / 512) as usize];
        let mut last = start;
        for_chunks(
            &mut extents,
            sectors_per_block * 512,
            start,
            size,
            |chunk| {
                assert!(chunk.offset >= last && chunk.len > 0);
                assert!(chunk.kind == Kind::Unmapped || chunk.len <= CHUNK as u64);
                last = chunk.offset + chunk.len;
                for sector in chunk.offset / 512..last / 512 {
                    found[sector as usize] = Some(chunk.kind);
                }
                Ok(())
            },
        )
        .expect("chunks");
        found
    }

    fn listed(blocks: &[Option<Kind>]) -> Extents {
        let folder = tempfile::tempdir().expect("a folder");
        let mut extents = Extents::new(&Home::at(folder.path()).expect("a home")).expect("a list");
        for (block, kind) in blocks.iter().enumerate() {
            if let Some(kind) = kind {
                extents.push(*kind, block as u64).expect("room");
            }
        }
        extents
    }

    proptest! {
        #[test]
        fn blocks_of_another_size_are_counted(
            blocks in proptest::collection::vec(
                prop_oneof![Just(None), Just(Some(Kind::Mapped)), Just(Some(Kind::Unmapped))], 1..100),
            block_size in 1u64..9,
            other_size in 1u64..30,
            cut in 0u64..8,
        ) {
            let size = (blocks.len() as u64 * block_size).saturating_sub(cut);
            let mapped = (0..size)
                .filter(|byte| blocks[(byte / block_size) as usize] == Some(Kind::Mapped))
                .map(|byte| byte / other_size);
            let wanted = mapped.collect::<std::collections::BTreeSet<_>>().len() as u64;
            let found = blocks_of(&mut listed(&blocks), block_size, size, other_size).expect("blocks");
            prop_assert_eq!(found, wanted);
        }

        #[test]
        fn chunks_are_what_was_listed(
            blocks in proptest::collection::vec(
                prop_oneof![Just(None), Just(Some(Kind::Mapped)), Just(Some(Kind::Unmapped))], 1..100),
            sectors_per_block in prop_oneof![Just(128u64), Just(384), Just(4096)],
            start in 0u64..100,
            cut in 0u64..128,
        ) {
            let all = blocks.len() as u64 * sectors_per_block;
            let start = start * sectors_per_block;
            let size = all - cut;
            let found = sectors(&blocks, sectors_per_block, start * 512, size * 512);
            for sector in 0..size {
                let wanted = match sector < start {
                    true => None,
                    false => blocks[(sector / sectors_per_block) as usize],
                };
                prop_assert_eq!(found[sector as usize], wanted);
            }
        }
    }
}
