// SPDX-License-Identifier: GPL-2.0

//! Sending a volume, or what has changed since another one of the same pool.

use std::{
    io::Write,
    ops::Range, //
};

use persistent_data::block_manager::BlockManager;
use thin_metadata::View;

use crate::{
    copy::{
        data_bytes,
        for_chunks, //
    },
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
    naming::{
        contents,
        device_id, //
    },
    session::Session,
    stream::{
        self,
        Header,
        ResumeToken,
        Totals,
        Writer, //
    },
    walk::try_walk,
};

/// What is wanted.
#[derive(Default)]
pub struct Request<'a> {
    /// The volume, which must be frozen, and which nobody else may be able to write to.
    pub id: u32,
    /// The volume that the stream starts from; as for `id`.
    pub from: Option<u32>,
    /// How large the volume is at least, in bytes, if that is known: the metadata do not tell.
    pub size: u64,
    /// Whether that is only what it was once. It counts as long as there is nothing behind it.
    pub is_old_size: bool,
    /// Where an earlier stream was cut off.
    pub resume: Option<&'a ResumeToken>,
}

/// What is to be sent.
pub struct Plan {
    /// What the stream begins with.
    pub header: Header,
    id: u32,
    extents: Extents,
}

/// Lists in which blocks volume `to` differs from `from`, or which ones it has if there is no `from`.
pub fn differences<B: BlockManager>(
    session: &Session,
    view: &View<'_, B>,
    from: Option<u32>,
    to: u32,
) -> Result<Extents> {
    let mut extents = Extents::new(&session.home)?;
    let from = from.map(device_id).transpose()?;
    let to = device_id(to)?;
    try_walk(|visit| {
        let mut push = |kind, block| visit(extents.push(kind, block));
        match from {
            None => view.for_mappings(to, |block, _| push(Kind::Mapped, block)),
            Some(from) => view.diff(from, to, |block, _, now| {
                push(
                    match now {
                        Some(_) => Kind::Mapped,
                        None => Kind::Unmapped,
                    },
                    block,
                )
            }),
        }
    })?;
    Ok(extents)
}

/// Whether a volume reads as anything but zeroes there.
pub fn has_data(session: &Session, id: u32, bytes: Range<u64>) -> Result<bool> {
    let source = Source::open(session, id, bytes.end)?;
    let mut buffer = Buffer::new();
    let mut offset = bytes.start;
    while offset < bytes.end {
        let len = bytes.end.saturating_sub(offset).min(CHUNK as u64);
        let data = buffer.get(len as usize);
        source.device().read(offset, data)?;
        if data.iter().any(|&byte| byte != 0) {
            return Ok(true);
        }
        offset = offset.saturating_add(len);
    }
    Ok(false)
}

/// Finds out what is to be sent, for which it takes a metadata snapshot for a short time.
pub fn plan(session: &Session, request: &Request<'_>) -> Result<Plan> {
    let Request {
        id, from, resume, ..
    } = *request;
    for id in from.into_iter().chain([id]) {
        session.check_not_written(id)?;
    }
    let active = session.active_size(id)?;
    let snap = session.metadata_snap()?;
    let view = snap.view()?;

    let now = contents(session, &view, id)?;
    let before = match from {
        Some(from) => Some(contents(session, &view, from)?),
        None => None,
    };
    for (id, contents) in [(Some(id), Some(now)), (from, before)] {
        if let (Some(id), Some(contents)) = (id, contents) {
            if !contents.frozen {
                return Err(Error::Refused(format!(
                    "volume {id} was written to since it was last part of a snapshot; take a snapshot of it (thinctl \
                     snapshot)"
                )));
            }
        }
    }
    let start = match resume {
        None => 0,
        Some(token) if token.to == now.state && token.from == before.map(|b| b.state) => {
            token.offset
        }
        Some(_) => {
            return Err(Error::Refused(
                "the token is of other volumes, or of another state of them".to_owned(),
            ))
        }
    };
    let extents = differences(session, &view, from, id)?;
    snap.release()?;

    let block_size = session.pool.block_size;
    let end = now.end.max(extents.end).saturating_mul(block_size);
    // The last block may be larger than what the volume has of it.
    let known = active.unwrap_or(0).max(request.size);
    let is_known = end.saturating_sub(known) < block_size
        && (!request.is_old_size || end <= known || !has_data(session, id, known..end)?);
    let size = if is_known { known } else { end };
    let mut plan = Plan {
        header: Header {
            size,
            block_size,
            to: now.state,
            from: before.map(|b| b.state),
            start,
            data: 0,
            name: format!("{} {id}", session.pool.name),
            time: stream::now(),
        },
        id,
        extents,
    };
    plan.header.data = data_bytes(&mut plan.extents, block_size, start, size)?;
    Ok(plan)
}

/// Sends what was planned. `progress` is told of each piece of data.
pub fn send(
    session: &Session,
    mut plan: Plan,
    output: impl Write,
    level: i32,
    mut progress: impl FnMut(u64),
) -> Result<Totals> {
    let Header {
        block_size,
        size,
        start,
        ..
    } = plan.header;
    let mut writer = Writer::with_level(output, &plan.header, level)?;
    let source = Source::open(session, plan.id, size)?;
    let mut buffer = Buffer::new();
    for_chunks(&mut plan.extents, block_size, start, size, |chunk| {
        match chunk.kind {
            Kind::Mapped => {
                let data = buffer.get(chunk.len as usize);
                source.device.read(chunk.offset, data)?;
                writer.data(chunk.offset, data)?;
                progress(chunk.len);
            }
            Kind::Unmapped => writer.discard(chunk.offset, chunk.len)?,
        }
        Ok(())
    })?;
    drop(source);
    // Whoever has activated the volume meanwhile, and written to it, has changed what was read.
    let snap = session.metadata_snap()?;
    let now = contents(session, &snap.view()?, plan.id)?;
    snap.release()?;
    if !now.is(plan.header.to) {
        return Err(Error::Refused(format!(
            "volume {} was written to while it was sent; what was received of it must be abandoned",
            plan.id
        )));
    }
    writer.finish()
}

/// A volume that is read.
pub struct Source {
    // Closed before the activation ends.
    device: Device,
    _activation: crate::session::Activation,
}

impl Source {
    /// Makes a device for `size` bytes of volume `id`, and opens it.
    pub fn open(session: &Session, id: u32, size: u64) -> Result<Self> {
        let activation = session.activate(id, size.max(1), true)?;
        Ok(Self {
            device: activation.open(Device::open)?,
            _activation: activation,
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }
}
