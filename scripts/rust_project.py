#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Adds our crates to the rust-project.json that the kernel wrote in a folder.

usage: rust_project.py FOLDER, where FOLDER is also that of the module's build.
"""

import json
import pathlib
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
# Where a crate is, and which others it uses.
CRATES = {
    "persistent_data": ("rust/persistent_data", []),
    "thin_metadata": ("rust/thin_metadata", ["persistent_data"]),
    "dm": ("rust/dm", []),
    "dm_thin": ("rust/dm_thin", ["persistent_data", "thin_metadata", "dm"]),
    "dm_load": ("tools/testing/bench/load", ["dm"]),
}


def main():
    output = pathlib.Path(sys.argv[1]).resolve()
    path = output / "rust-project.json"
    project = json.loads(path.read_text())
    crates = project["crates"]
    index = {crate["display_name"]: i for i, crate in enumerate(crates)}
    cfg = crates[index["kernel"]]["cfg"] + ["MODULE", "dm_load"]

    for name, (folder, uses) in CRATES.items():
        deps = ["core", "kernel", "pin_init", "zerocopy", "zerocopy_derive", *uses]
        index[name] = len(crates)
        crates.append({
            "display_name": name,
            "root_module": str(TOP / folder / "lib.rs"),
            "is_workspace_member": True,
            "deps": [{"crate": index[dep], "name": dep} for dep in deps],
            "cfg": cfg,
            "edition": "2021",
            "env": {
                "RUST_MODFILE": "This is only for rust-analyzer",
                "DM_BINDINGS": str(output / "rust/bindings/bindings_generated.rs"),
                "PERSISTENT_DATA_BINDINGS": str(output / "rust/bindings/crc32_generated.rs"),
            },
            "source": {
                "include_dirs": [str(TOP / "rust"), str(TOP / "tools"), str(output / "rust")],
                "exclude_dirs": [],
            },
        })
    path.write_text(json.dumps(project, indent=4) + "\n")


if __name__ == "__main__":
    main()
