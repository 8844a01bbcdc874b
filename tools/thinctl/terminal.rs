// SPDX-License-Identifier: GPL-2.0

//! Maps in a terminal.

use std::{
    collections::BTreeSet,
    io::{
        self,
        Write, //
    },
};

use crate::{
    colour::{
        Colour,
        FREE,
        SHARED, //
    },
    error::{
        Error,
        Result, //
    },
    map::{
        Cell,
        Map, //
    },
};

/// The most volumes that the legend names.
const NAMED: usize = 16;

/// What a terminal has room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terminal {
    /// How many characters are in a line.
    pub columns: u32,
    /// How many lines to use.
    pub lines: u32,
    /// Whether it shows colours. Then each character stands for two cells, one above the other.
    pub colours: bool,
}

impl Terminal {
    /// How many cells a map may have.
    pub fn nr_cells(&self) -> u32 {
        let per_character = if self.colours { 2 } else { 1 };
        self.columns
            .saturating_mul(self.lines)
            .saturating_mul(per_character)
    }

    /// Draws a map.
    pub fn write(&self, map: &Map, out: &mut dyn Write) -> Result {
        let columns = self.columns.max(1) as usize;
        match self.colours {
            true => coloured(map, columns, out),
            false => plain(map, columns, out),
        }
        .map_err(Error::io("cannot write"))
    }
}

fn coloured(map: &Map, columns: usize, out: &mut dyn Write) -> io::Result<()> {
    for rows in map.cells.chunks(columns.saturating_mul(2)) {
        let (above, below) = rows.split_at(columns.min(rows.len()));
        for (i, cell) in above.iter().enumerate() {
            let Colour(r, g, b) = Colour::of_cell(cell);
            write!(out, "\x1b[38;2;{r};{g};{b}m")?;
            match below.get(i) {
                Some(cell) => {
                    let Colour(r, g, b) = Colour::of_cell(cell);
                    write!(out, "\x1b[48;2;{r};{g};{b}m▀")?;
                }
                None => write!(out, "\x1b[49m▀")?,
            }
        }
        writeln!(out, "\x1b[0m")?;
    }
    let mut entry = |name: &str, Colour(r, g, b): Colour| {
        write!(out, "\x1b[38;2;{r};{g};{b}m██\x1b[0m {name}  ")
    };
    entry("free", FREE)?;
    entry("shared", SHARED)?;
    let volumes: BTreeSet<u64> = map.cells.iter().filter_map(|cell| cell.volume).collect();
    for id in volumes.iter().take(NAMED) {
        entry(&format!("volume {id}"), Colour::of_volume(*id))?;
    }
    if volumes.len() > NAMED {
        write!(out, "and {} more", volumes.len() - NAMED)?;
    }
    writeln!(out)
}

fn plain(map: &Map, columns: usize, out: &mut dyn Write) -> io::Result<()> {
    for row in map.cells.chunks(columns) {
        let line: String = row.iter().map(character).collect();
        writeln!(out, "{line}")?;
    }
    writeln!(out, "· free  ▒ shared  ░ partly exclusive  █ exclusive")
}

/// What most of a cell is.
fn character(cell: &Cell) -> char {
    match (cell.exclusive, cell.shared) {
        (0, 0) => '·',
        (own, shared) if shared > own => '▒',
        (own, shared) if own.saturating_add(shared).saturating_mul(2) < cell.blocks => '░',
        _ => '█',
    }
}
