#!/usr/bin/env python3
"""Writes the memory guide into README.md and docs/memory.md, between its marks.

    python3 scripts/write_guide.py [--check]

The table is what `build/gptd plan --guide` prints. --check changes nothing and fails where a file
says something else.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- gptd plan --guide -->\n", "<!-- end of the guide -->\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--gptd", default=str(ROOT / "build" / "gptd"))
    args = parser.parse_args()
    guide = subprocess.run([args.gptd, "plan", "--guide"], cwd=ROOT, check=True, text=True,
                           capture_output=True).stdout
    for name in ("README.md", "docs/memory.md"):
        path = ROOT / name
        text = path.read_text()
        before, rest = text.split(BEGIN)
        _, after = rest.split(END)
        now = f"{before}{BEGIN}{guide}{END}{after}"
        if now == text:
            continue
        if args.check:
            sys.exit(f"{name}: the guide is not what gptd plan --guide prints; "
                     "python3 scripts/write_guide.py writes it")
        path.write_text(now)
        print(f"{name}: written")


if __name__ == "__main__":
    main()
