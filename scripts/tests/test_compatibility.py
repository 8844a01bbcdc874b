# SPDX-License-Identifier: GPL-2.0
"""Documentation/compatibility.rst names all that the C module takes and tells, and a test that exists for each."""

import ast
import pathlib
import re
import subprocess
import unittest

TOP = pathlib.Path(__file__).resolve().parents[2]
DOCUMENT = TOP / "Documentation/compatibility.rst"
FUNCTIONAL = TOP / "tools/testing/functional"
ROW, CELL, MORE = "   * - ", "     - ", "       "
TEST = re.compile(r"``([\w./]+\.py)::(\w+)``")


def rows(text):
    """The rows of all tables but their heads, as (line number, cells)."""
    found = []
    table = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(".. list-table::"):
            table = []
        elif table is None:
            continue
        elif line.startswith(ROW):
            table.append((number, [line[len(ROW):]]))
        elif line.startswith(CELL) or line == CELL.rstrip():
            table[-1][1].append(line[len(CELL):])
        elif line.startswith(MORE) and table:
            table[-1][1][-1] += " " + line.strip()
        elif line and not line.startswith("   :"):
            found += table[1:]
            table = None
    return found + (table or [])[1:]


def functions(path):
    """The names of a file's tests, also of those that are methods."""
    return {node.name for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test")}


def tests(name, known={}):
    """The tests of a file: one of the functional tests, or one named from the top of the tree."""
    if name not in known:
        path = TOP / name if "/" in name else FUNCTIONAL / name
        known[name] = functions(path) if path.is_file() else set()
    return known[name]


def faults(text):
    """What is wrong with the tables in the text."""
    found = []
    for number, cells in rows(text):
        if len(cells) != 2 or not all(cell.strip() for cell in cells):
            found.append(f"line {number}: not two cells with something in them")
            continue
        named = TEST.findall(cells[1])
        if not named or TEST.sub("", cells[1]).strip(" ,"):
            found.append(f"line {number}: no test, or something else beside tests")
        found += [f"line {number}: no {name} in {file}" for file, name in named if name not in tests(file)]
    return found


def c_source():
    """dm-thin.c of the kernel that scripts/setup has unpacked."""
    script = f'eval "$({TOP}/scripts/setup env)" && echo "$KERNEL_SRC"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return pathlib.Path(done.stdout.strip(), "drivers/md/dm-thin.c").read_text()


def interface(source):
    """What is seen from outside, in the source's own words."""
    found = set(re.findall(r'error = "([^"]*)"', source))
    found |= set(re.findall(r'\{\d+, \d+, "([^"]*)"\}', source))
    found |= set(re.findall(r'strcasecmp\(\w+(?:\[0\])?, "(\w+)"\)', source))
    found |= set(re.findall(r"(?:module_param_named|_WITH_MODULE_PARM)\((\w+)", source))
    found |= {word for text in re.findall(r'DMEMIT\("([^"%]*)"', source) for word in text.split()}
    found |= set(re.findall(r"^\t(PM_\w+),", source, re.M))
    return found


class Compatibility(unittest.TestCase):
    def setUp(self):
        self.text = DOCUMENT.read_text()

    def test_every_row_names_tests_that_exist(self):
        self.assertGreater(len(rows(self.text)), 80)
        self.assertEqual(faults(self.text), [])

    def test_nothing_of_the_c_module_is_missing(self):
        wanted = interface(c_source())
        for example in ["Invalid block size", "create_snap", "no_space_timeout", "snapshot_copy_throttle", "out_of_data_space", "PM_FAIL",
                        "skip_block_zeroing", "Couldn't open thin internal device", "Invalid number of pool feature arguments"]:
            self.assertIn(example, wanted)
        prose = " ".join(self.text.split())
        self.assertEqual(sorted(word for word in wanted if word not in prose), [])

    def test_faults_are_found(self):
        """The checks above would be worthless if they found nothing."""
        head = ".. list-table::\n   :header-rows: 1\n\n   * - What\n     - Tests\n"
        good = "   * - one\n     - ``test_basic.py::test_transaction_id``,\n       ``test_module.py::test_parameters``\n"
        self.assertEqual(faults(head + good), [])
        for row in ["   * - two\n     -\n", "   * - two\n", "   * - two\n     - later\n",
                    "   * - two\n     - ``test_basic.py::test_nonsense``\n", "   * - two\n     - ``test_none.py::test_parameters``\n",
                    "   * - two\n     - ``test_module.py::test_parameters`` and more\n"]:
            with self.subTest(row=row):
                self.assertEqual(len(faults(head + good + row + "\nEnd\n")), 1)


if __name__ == "__main__":
    unittest.main()
