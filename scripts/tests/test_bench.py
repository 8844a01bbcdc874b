# SPDX-License-Identifier: GPL-2.0
"""The benchmark's figures become lines, tables, verdicts and a chart."""

import fnmatch
import pathlib
import re
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree

TOP = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "tools" / "testing"))

from bench import (  # noqa: E402
    chart,
    images,
    machine,
    measure,
    profile,
    report,
    rows,
)


def figures(row="read-4k-random", size="1Mi", **found):
    return report.Figures({(row, size): found})


class Lines(unittest.TestCase):
    def test_all_columns(self):
        self.assertEqual(
            figures(null_blk=1900.2, linear=3418.0, c=8519.0, rust=3759.8).line("read-4k-random", "1Mi"),
            "BENCH read-4k-random 1Mi null_blk=1900 linear=3418 c=8519 rust=3760 rust/c=0.44 rust/linear=1.10")

    def test_columns_without_sense(self):
        self.assertEqual(figures("delete", c=5e8, rust=2e6).line("delete", "1Mi"),
                         "BENCH delete 1Mi null_blk=- linear=- c=500000000 rust=2000000 rust/c=0.0040 rust/linear=-")

    def test_small_figures_keep_their_digits(self):
        line = figures("scale-1-volume", "1Mi/64", linear=1.951, c=1.2, rust=1.849).line("scale-1-volume", "1Mi/64")
        self.assertIn("linear=1.95 c=1.20 rust=1.85 rust/c=1.54", line)

    def test_table_has_a_line_for_each_figure(self):
        values = {("read-4k-random", "1Mi"): {"c": 4000}, ("delete", "8Mi/64"): {"c": 123456}}
        table = report.Figures(values).table()
        self.assertEqual(len(table), 3)
        self.assertEqual(len({len(line) for line in table}), 1)
        self.assertEqual(table[2].split(), ["delete", "8Mi/64", "-", "-", "123456", "-", "-", "-"])

    def test_comes_back_from_a_file(self):
        before = figures(c=2.5, rust=1.25)
        with tempfile.TemporaryDirectory() as folder:
            before.write(f"{folder}/figures.json", {"kernel": "7.3"})
            self.assertEqual(report.Figures.read(f"{folder}/figures.json").values, before.values)


class Replies(unittest.TestCase):
    REPLY = "ns=1000 ios=10 errors={} min=1 p50=2 p99=3 p999=4 max=5"

    def test_numbers(self):
        found = machine.Report.parse(self.REPLY.format(0), "run read seq 4096 10", 10)
        self.assertEqual((found["ns"], found["ios"], found["p999"]), (1000, 10, 4))

    def test_errors_are_no_figures(self):
        with self.assertRaises(RuntimeError):
            machine.Report.parse(self.REPLY.format(1), "run read seq 4096 10", 10)

    def test_too_few_are_no_figures(self):
        with self.assertRaises(RuntimeError):
            machine.Report.parse(self.REPLY.format(0), "run read seq 4096 11", 11)


class Bars(unittest.TestCase):
    def verdicts(self, values):
        return {(v.bar.row, v.bar.size, v.bar.name): v for v in report.verdicts(report.Figures(values))}

    def test_name_rows_that_are_measured(self):
        for bar in rows.BARS:
            for name in filter(None, (bar.row, bar.to_row)):
                self.assertTrue(rows.by_name(name).in_size(rows.size_by_name(bar.size)), bar)

    def test_at_most(self):
        for rust, met in ((500, True), (501, False)):
            verdict = self.verdicts({("read-4k-random", "1Mi"): {"c": 1000, "rust": rust}})["read-4k-random", "1Mi", "rust/c"]
            self.assertEqual(verdict.met, met)
            self.assertIn("ok" if met else "MISSED", verdict.line())

    def test_at_least(self):
        for rust, met in ((1.8, True), (1.79, False)):
            verdict = self.verdicts({("scale-1-volume", "1Mi/64"): {"rust": rust}})["scale-1-volume", "1Mi/64", "rust"]
            self.assertEqual(verdict.met, met)

    def test_of_a_figure_itself(self):
        for rust, met in ((64, True), (65, False)):
            self.assertEqual(self.verdicts({("memory-limit", "1Mi"): {"rust": rust}})["memory-limit", "1Mi", "rust"].met, met)

    def test_against_another_row(self):
        for rust, met in ((5.4e6, True), (5.6e6, False)):
            values = {("latency-p999", "1Mi"): {"rust": 5e6}, ("latency-p999-commit", "1Mi"): {"rust": rust}}
            self.assertEqual(self.verdicts(values)["latency-p999-commit", "1Mi", "rust/latency-p999"].met, met)

    def test_without_figures(self):
        self.assertTrue(all(not v.met and "not measured" in v.line() for v in self.verdicts({}).values()))


class Selection(unittest.TestCase):
    def test_patterns_and_sizes(self):
        chosen = {(row.name, size.name) for row, size in rows.select(["break-4*", "delete"], ["1Mi", "8Mi"])}
        self.assertEqual(chosen, {("break-4k", "1Mi"), ("break-4k", "8Mi"), ("delete", "1Mi")})

    def test_all(self):
        self.assertEqual({row.name for row, _ in rows.select([], [])}, {row.name for row in rows.ROWS})

    def test_each_row_has_its_place(self):
        """Rows that provision keep to what they were given, and those that break sharing do not meet."""
        own = [row for row in rows.ROWS if isinstance(row, rows.Io) and row.area in ("fresh", "sparse", "written")]
        for size in rows.SIZES:
            spans = sorted((slots.start, slots.start + slots.length) for slots in (measure.Slots(row, size) for row in own))
            for (_, end), (start, _) in zip(spans, spans[1:]):
                self.assertLessEqual(end, start)
            mapped = size.per_volume * rows.BLOCK
            self.assertGreaterEqual(spans[0][0], mapped)
            breaks = sorted((slots.start, slots.start + slots.length) for slots in (
                measure.Slots(rows.by_name(name), size) for name in ("break-64k-first", "break-64k", "break-4k")))
            for (_, end), (start, _) in zip(breaks, [*breaks[1:], (mapped, mapped)]):
                self.assertLessEqual(end, start)


class Document(unittest.TestCase):
    def test_has_every_row(self):
        text = (TOP / "Documentation" / "benchmark.rst").read_text()
        named = re.findall(r"``([a-z0-9*-]+)``", text)
        missing = [row.name for row in rows.ROWS if not any(fnmatch.fnmatchcase(row.name, pattern) for pattern in named)]
        self.assertEqual(missing, [])


class Images(unittest.TestCase):
    def test_every_block_is_mapped_once(self):
        for size in (rows.Size(rows.KIB, 1), rows.Size(rows.KIB, 4)):
            root = ElementTree.fromstring("".join(images.lines(size)))
            self.assertEqual([int(device.get("mapped_blocks")) for device in root], [size.per_volume] * size.volumes)
            data = [int(r.get("data_begin")) + i for r in root.iter("range_mapping") for i in range(int(r.get("length")))]
            self.assertEqual(sorted(data), list(range(size.mapped)))


class Profiles(unittest.TestCase):
    SYMBOLS = ["ffffffff81000000 T first", "ffffffff81000100 t second", "ffffffff82000000 D data", "ffffffffc0000000 t _RNvCs1_4dm_x3map\t[dm_x]"]

    def test_addresses_become_functions(self):
        symbols = profile.Symbols(self.SYMBOLS)
        self.assertEqual(symbols.find(0xffffffff810000ff), ("first", 0xff))
        self.assertEqual(symbols.find(0xffffffff81000100), ("second", 0))
        self.assertEqual(symbols.find(0xffffffff82000010)[0], "second")
        self.assertEqual(symbols.find(0x1000)[0], "?")

    def test_shares(self):
        samples = profile.Profile()
        for address, ring, halted in ((0xffffffff81000001, 0, False),) * 3 + ((0x4000, 3, False),):
            samples.add(profile.Symbols(self.SYMBOLS), address, ring, halted)
        table = samples.table()
        self.assertEqual(table[0], "4 samples")
        self.assertIn(" 75.00 %  first", table)
        self.assertIn(" 25.00 %  (user space)", table)
        self.assertIn(" 75.00 %  first+0x1", table)

    def test_registers(self):
        state = "EAX=0\nRIP=ffffffff81000001 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\n"
        self.assertEqual(profile.STATE.search(state).groups(), ("ffffffff81000001", "0", "1"))


class Chart(unittest.TestCase):
    def test_is_an_image_with_all_rows(self):
        values = {("read-4k-random", "1Mi"): {"null_blk": 1900, "linear": 3400, "c": 8500, "rust": 3700},
                  ("discard-64k", "1Mi"): {"c": 30000, "rust": 40000}, ("break-4k", "8Mi"): {"c": 1, "rust": 1}}
        drawn = chart.svg(report.Figures(values))
        root = ElementTree.fromstring(drawn)
        words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        self.assertIn("read-4k-random", words)
        self.assertIn("40,000", words)
        self.assertNotIn("break-4k", words)
        for bar in root.iter("{http://www.w3.org/2000/svg}rect"):
            self.assertLessEqual(float(bar.get("x")) + float(bar.get("width")), chart.WIDTH)


if __name__ == "__main__":
    unittest.main()
