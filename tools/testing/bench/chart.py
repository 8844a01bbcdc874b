# SPDX-License-Identifier: GPL-2.0
"""The chart in Documentation: for every row what a request costs under each of the subjects, as an SVG image."""

from bench import (
    report,
    rows,
)

WIDTH = 880
LEFT = 190
RIGHT = 90
BAR = 9
GAP = 10
TOP = 92
SCALE = WIDTH - LEFT - RIGHT
# The end of the scale, in multiples of the C module's figure.
LONGEST = 1.5

# One set of colours for light and one for dark surroundings.
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.small { font-size: 11px; fill: #59636e }
.paper { fill: #ffffff }
.grid { stroke: #d1d9e0 }
.null_blk { fill: #afb8c1 } .linear { fill: #6e7781 } .c { fill: #d4772c } .rust { fill: #1a7fb8 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.small { fill: #9198a1 }
.paper { fill: #0d1117 }
.grid { stroke: #3d444d }
.null_blk { fill: #565e67 } .linear { fill: #8b949e } .c { fill: #e0873e } .rust { fill: #46a6dd }
}
"""
NAMES = {"null_blk": "null_blk", "linear": "dm-linear", "c": "C dm-thin-pool", "rust": "this module"}


def text(x, y, content, kind="", anchor="start"):
    escaped = content.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}"' + (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "") + f">{escaped}</text>"


def rectangle(x, y, width, height, kind):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}"/>'


def shown(figures, size):
    """The rows of the chart with their figures: I/O at one size."""
    for row in rows.ROWS:
        found = figures.values.get((row.name, size))
        if found and isinstance(row, rows.Io) and "c" in found and "rust" in found:
            yield row, found


def svg(figures, size=rows.MAIN.name):
    """In every row, the C module's figure is 1. Bars that are far longer than that are cut off."""
    chosen = list(shown(figures, size))
    longest = max((value / found["c"] for _, found in chosen for value in found.values()), default=1)
    steps = 4 * min(max(longest, 1), LONGEST)
    unit = SCALE / steps * 4
    lines = []
    y = TOP
    for row, found in chosen:
        present = [subject for subject in rows.SUBJECTS if found.get(subject) is not None]
        lines.append(text(LEFT - 10, y + len(present) * BAR / 2 + 4, row.name, anchor="end"))
        for subject in present:
            width = min(found[subject] / found["c"] * unit, SCALE)
            lines.append(rectangle(LEFT, y, width, BAR - 1, subject))
            if subject in ("c", "rust"):
                lines.append(text(LEFT + width + 5, y + BAR - 1, f"{found[subject]:,.0f}", "small"))
            y += BAR
        y += GAP
    grid, marks = [], []
    for step in range(int(steps) + 1):
        x = LEFT + unit * step / 4
        grid.append(f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{y - GAP + 4}" class="grid"/>')
        marks.append(text(x, TOP - 12, f"{step / 4:g}", "small", "middle"))
    legend = []
    x = LEFT
    for subject in rows.SUBJECTS:
        legend += [rectangle(x, 48, 12, 10, subject), text(x + 17, 57, NAMES[subject])]
        x += 34 + 7.2 * len(NAMES[subject])
    height = y + 20
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<style>{STYLE}</style>", rectangle(0, 0, WIDTH, height, "paper"),
        text(16, 26, f"Instructions per I/O, {size} blocks mapped", "title"),
        text(LEFT + SCALE, 26, "bars: C module = 1; figures: instructions; shorter is better", "small", "end"),
        *legend, *grid, *marks, *lines, "</svg>", "",
    ])


def draw(figures, path):
    with open(path, "w") as file:
        file.write(svg(figures))


def redraw(data, path):
    """Draws the chart of a JSON file."""
    draw(report.Figures.read(data), path)
