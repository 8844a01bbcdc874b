// SPDX-License-Identifier: GPL-2.0

//! Maps as drawings.

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
    map::Map,
};

/// The height of a line of text.
const LINE: u32 = 18;

/// The distance between what is drawn and the edges.
const MARGIN: u32 = 10;

/// The width of an entry of the legend.
const ENTRY: u32 = 110;

/// The most volumes that the legend names.
const NAMED: usize = 40;

/// How a drawing is laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Svg {
    /// How many cells are side by side.
    pub columns: u32,
    /// How many rows there are at most.
    pub rows: u32,
    /// The size of a cell in pixels.
    pub size: u32,
}

impl Default for Svg {
    fn default() -> Self {
        Self {
            columns: 128,
            rows: 64,
            size: 6,
        }
    }
}

impl Svg {
    /// How many cells a map may have.
    pub fn nr_cells(&self) -> u32 {
        self.columns.saturating_mul(self.rows)
    }

    /// Draws a map.
    pub fn write(&self, map: &Map, title: &str, out: &mut dyn Write) -> Result {
        self.draw(map, title, out)
            .map_err(Error::io("cannot write"))
    }

    fn draw(&self, map: &Map, title: &str, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.columns.max(1) as usize;
        let inner = self.columns.max(1).saturating_mul(self.size).max(4 * ENTRY);
        let nr_rows = u32::try_from(map.cells.len().div_ceil(columns)).unwrap_or(u32::MAX);
        let top = MARGIN + 2 * LINE;
        let bottom = nr_rows.saturating_mul(self.size).saturating_add(top);

        let volumes: BTreeSet<u64> = map.cells.iter().filter_map(|cell| cell.volume).collect();
        let mut legend = vec![("free".to_string(), FREE), ("shared".to_string(), SHARED)];
        legend.extend(
            volumes
                .iter()
                .take(NAMED)
                .map(|id| (format!("volume {id}"), Colour::of_volume(*id))),
        );
        let per_line = (inner / ENTRY).max(1) as usize;
        let nr_lines = u32::try_from(legend.len().div_ceil(per_line)).unwrap_or(u32::MAX);

        let title = escaped(title);
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" \
             font-family=\"sans-serif\" font-size=\"12\">",
            inner.saturating_add(2 * MARGIN),
            nr_lines
                .saturating_mul(LINE)
                .saturating_add(bottom)
                .saturating_add(2 * MARGIN),
        )?;
        writeln!(out, "<title>{title}</title>")?;
        writeln!(
            out,
            "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>"
        )?;
        writeln!(
            out,
            "<text x=\"{MARGIN}\" y=\"{}\" font-weight=\"bold\">{title}</text>",
            MARGIN + 12
        )?;
        writeln!(
            out,
            "<text x=\"{MARGIN}\" y=\"{}\">{} blocks: {} exclusive, {} shared, {} free</text>",
            MARGIN + LINE + 12,
            map.blocks,
            map.exclusive,
            map.shared,
            map.blocks
                .saturating_sub(map.exclusive)
                .saturating_sub(map.shared)
        )?;
        let mut y = top;
        for row in map.cells.chunks(columns) {
            self.draw_row(row, y, out)?;
            y = y.saturating_add(self.size);
        }
        for (i, (name, colour)) in legend.iter().enumerate() {
            let column = u32::try_from(i % per_line).unwrap_or(0);
            let line = u32::try_from(i / per_line).unwrap_or(0);
            let x = column.saturating_mul(ENTRY).saturating_add(MARGIN);
            let y = line
                .saturating_mul(LINE)
                .saturating_add(bottom)
                .saturating_add(MARGIN);
            writeln!(
                out,
                "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
                 <text x=\"{}\" y=\"{}\">{name}</text>",
                x.saturating_add(16),
                y.saturating_add(11)
            )?;
        }
        if volumes.len() > NAMED {
            writeln!(out, "<!-- {} more volumes -->", volumes.len() - NAMED)?;
        }
        writeln!(out, "</svg>")?;
        out.flush()
    }

    /// Draws neighbours of one colour as one rectangle.
    fn draw_row(&self, row: &[crate::map::Cell], y: u32, out: &mut dyn Write) -> io::Result<()> {
        let size = self.size;
        let colours: Vec<Colour> = row.iter().map(Colour::of_cell).collect();
        let mut x = MARGIN;
        for run in colours.chunk_by(|a, b| a == b) {
            let width = u32::try_from(run.len())
                .unwrap_or(u32::MAX)
                .saturating_mul(size);
            if let Some(colour) = run.first() {
                writeln!(
                    out,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{size}\" \
                     fill=\"{colour}\"/>"
                )?;
            }
            x = x.saturating_add(width);
        }
        Ok(())
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
