// SPDX-License-Identifier: GPL-2.0

//! The commands that only look.

use std::{
    fs::File,
    io::{
        self,
        BufWriter,
        IsTerminal,
        Seek,
        Write, //
    },
    path::Path,
};

use persistent_data::block::BLOCK_SIZE;
use serde::Serialize;
use thin_metadata::format::MAX_TIME;

use crate::{
    cli::Global,
    diff,
    error::{
        Error,
        Result, //
    },
    kept,
    map,
    naming::device_id,
    pool,
    session::Session,
    svg::Svg,
    terminal::Terminal,
    usage, //
};

/// How large a map in a terminal is, unless the command line says how wide.
const COLUMNS: u32 = 80;
const LINES: u32 = 16;

/// What is shown of a pool.
#[derive(Serialize)]
struct Status {
    #[serde(flatten)]
    status: pool::Status,
    /// How many snapshots were taken so far.
    snapshot_time: u32,
    /// How many can be.
    max_snapshot_time: u32,
}

/// Shows what a pool has and how much of it is used.
pub(super) fn status(global: &Global, session: &Session) -> Result {
    let stamp = session.pool.stamp()?;
    let shown = Status {
        status: session.pool.status(&session.dm)?,
        snapshot_time: stamp.time,
        max_snapshot_time: MAX_TIME,
    };
    let status = &shown.status;
    let block_size = session.pool.block_size;
    global.print(&shown, |f| {
        let part = |used: u64, all: u64, size: u64| {
            let percent = used as f64 / all.max(1) as f64 * 100.0;
            let bytes = |blocks: u64| usage::bytes(blocks.saturating_mul(size));
            format!("{} of {} ({percent:.1} %)", bytes(used), bytes(all))
        };
        let data = part(status.used_data_blocks, status.data_blocks, block_size);
        let (used, all) = (status.used_metadata_blocks, status.metadata_blocks);
        let metadata = part(used, all, BLOCK_SIZE as u64);
        writeln!(f, "mode                {}", status.mode)?;
        writeln!(f, "data                {data}")?;
        writeln!(f, "metadata            {metadata}")?;
        writeln!(f, "block size          {}", usage::bytes(block_size))?;
        writeln!(f, "transaction id      {}", status.transaction_id)?;
        match status.metadata_snap {
            Some(root) => writeln!(f, "metadata snapshot   at block {root}")?,
            None => writeln!(f, "metadata snapshot   none")?,
        }
        let percent = f64::from(stamp.time) / f64::from(MAX_TIME) * 100.0;
        let time = stamp.time;
        writeln!(
            f,
            "snapshot time       {time} of {MAX_TIME} ({percent:.1} %)"
        )?;
        writeln!(f, "discards            {}", status.discard)?;
        writeln!(f, "without space       {}", status.no_space)?;
        if status.needs_check {
            writeln!(f, "the metadata must be checked")?;
        }
        if stamp.is_late() {
            writeln!(
                f,
                "each snapshot takes one of the snapshot time, and none can be taken when it is used up: migrate the \
                 volumes to a new pool before"
            )?;
        }
        Ok(())
    })
}

/// Lists a pool's volumes.
pub(super) fn ls(global: &Global, session: &Session) -> Result {
    let blocks = session.pool.status(&session.dm)?.data_blocks;
    let metadata = session.metadata()?;
    let found = usage::usage(&metadata.view()?, blocks)?;
    session.release(metadata)?;
    if global.json {
        return global.print(&found, |_| Ok(()));
    }
    found.write_text(&mut io::stdout().lock())
}

/// Draws a pool or a volume.
pub(super) fn map(
    global: &Global,
    session: &Session,
    volume: Option<&str>,
    svg: Option<&Path>,
    width: Option<u32>,
) -> Result {
    let blocks = session.pool.status(&session.dm)?.data_blocks;
    let picture = Svg::default();
    let terminal = Terminal {
        columns: width.unwrap_or(COLUMNS),
        lines: LINES,
        colours: io::stdout().is_terminal(),
    };
    let nr_cells = match svg {
        Some(_) => picture.nr_cells(),
        None => terminal.nr_cells(),
    };
    let id = global.volume(session, volume)?;
    let size = match id {
        Some(id) => session.active_size(id)?,
        None => None,
    };

    let metadata = session.metadata()?;
    let view = metadata.view()?;
    let (map, title) = match id {
        Some(id) => {
            let virtual_blocks = size.map(|size| size.div_ceil(session.pool.block_size));
            let map = map::volume(&view, device_id(id)?, virtual_blocks, blocks, nr_cells)?;
            (map, format!("volume {id} of pool {}", session.pool.name))
        }
        None => {
            let map = map::pool(&view, blocks, nr_cells)?;
            (map, format!("pool {}", session.pool.name))
        }
    };
    session.release(metadata)?;

    if let Some(path) = svg {
        let file = File::create(path).map_err(Error::io(path.display()))?;
        let mut file = BufWriter::new(file);
        picture.write(&map, &title, &mut file)?;
        file.flush().map_err(Error::io(path.display()))?;
    }
    if global.json {
        return global.print(&map, |_| Ok(()));
    }
    match svg {
        Some(_) => Ok(()),
        None => terminal.write(&map, &mut io::stdout().lock()),
    }
}

/// Shows which ranges of two volumes differ.
pub(super) fn diff(
    global: &Global,
    session: &Session,
    left: &str,
    right: &str,
    same: bool,
) -> Result {
    let id = |name| device_id(session.pool.volume_id(&session.dm, name)?);
    let (left, right) = (id(left)?, id(right)?);
    let metadata = session.metadata()?;
    let view = metadata.view()?;
    // Whoever reads it may take their time, but others want the metadata snapshot.
    let failed = || Error::io("list of ranges");
    let mut list = tempfile::tempfile_in(session.home.path("")).map_err(failed())?;
    let output = BufWriter::new(&list);
    let options = diff::Options { same };
    if global.json {
        diff::diff(&view, left, right, options, &mut diff::Json::new(output))?;
    } else {
        diff::diff(&view, left, right, options, &mut diff::Text(output))?;
    }
    session.release(metadata)?;
    list.rewind().map_err(failed())?;
    let mut output = io::stdout().lock();
    io::copy(&mut list, &mut output)
        .and_then(|_| output.flush())
        .map_err(Error::io("standard output"))
}

/// What is shown of a volume that thinctl keeps.
#[derive(Serialize)]
struct Kept<'a> {
    #[serde(flatten)]
    kept: &'a kept::Kept,
    /// Whether it is there.
    exists: bool,
}

/// Lists the volumes that thinctl keeps for itself.
pub(super) fn kept(global: &Global, session: &Session) -> Result {
    let found = kept::list(session)?;
    let shown: Vec<_> = found
        .iter()
        .map(|(kept, exists)| Kept {
            kept,
            exists: *exists,
        })
        .collect();
    global.print(&shown, |f| {
        writeln!(f, "{:>8} {:>8}  {:<9}  FOR", "KEPT", "VOLUME", "BY")?;
        shown.iter().try_for_each(|Kept { kept, exists }| {
            let gone = if *exists { "" } else { " (it is gone)" };
            let kept::Kept {
                id,
                volume,
                owner,
                place,
            } = kept;
            writeln!(f, "{id:>8} {volume:>8}  {owner:<9}  {place}{gone}")
        })
    })
}
