"""Failing the system under gptd: the other half of interpose.c, whose control page this maps."""

import errno
import mmap
import os
import random
import re
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import gptd

LIBRARY = gptd.ROOT / "build" / "tests" / "faults" / "interpose.so"
MEMORY, FILE, PROCESS = 1, 2, 4
KINDS = {"memory": MEMORY, "file": FILE, "process": PROCESS}
FOREVER = 2**62
CONTROL_BYTES, ROLE_AT, TRACE_AT, N_STACKS = 4096, 64, 96, 1 << 16
FIELDS = ["kinds", "first", "last", "calls", "failed", "error", "blocks", "record"]


class Faults:
    """The control page of one server or command. Nothing fails, and nothing counts, until armed."""

    def __init__(self, role):
        handle, self.path = tempfile.mkstemp(prefix="gptd-faults-")
        os.ftruncate(handle, CONTROL_BYTES + 8 * N_STACKS)
        self.page = mmap.mmap(handle, CONTROL_BYTES + 8 * N_STACKS)
        os.close(handle)
        self.page[ROLE_AT:ROLE_AT + 32] = role.encode().ljust(32, b"\0")
        self.environment = {**os.environ, "LD_PRELOAD": str(LIBRARY),
                            "GPTD_FAULT_CONTROL": self.path}

    def close(self):
        self.page.close()
        os.unlink(self.path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def get(self, field):
        return struct.unpack_from("<q", self.page, 8 * FIELDS.index(field))[0]

    def set(self, field, value):
        struct.pack_into("<q", self.page, 8 * FIELDS.index(field), value)

    def arm(self, kinds, first=FOREVER, last=None, error=errno.EIO):
        """From now on calls of these kinds count; those from the first to the last (by default that
        one alone) fail."""
        self.set("kinds", 0)
        self.page[TRACE_AT:CONTROL_BYTES] = bytes(CONTROL_BYTES - TRACE_AT)
        for field, value in (("first", first), ("last", first if last is None else last),
                             ("error", error), ("calls", 0), ("failed", 0), ("kinds", kinds)):
            self.set(field, value)

    def disarm(self):
        """The number of calls since it was armed."""
        self.set("kinds", 0)
        return self.get("calls")

    def record(self, kinds):
        """Arms it to fail nothing and to note the way to each call, for calls_to_fail."""
        self.arm(kinds)
        self.set("record", 1)

    def calls_to_fail(self, every=600, most=None, seed=1):
        """How many calls there were since record(), and those worth failing: all, or where there
        are more than `every`, the first and last of each way to one. `most`: a sample of them."""
        n = self.disarm()
        self.set("record", 0)
        numbers = list(range(1, n + 1))
        if n > every:
            stacks = struct.unpack_from(f"<{min(n, N_STACKS)}Q", self.page, CONTROL_BYTES)
            first, last = {}, {}
            for number, stack in enumerate(stacks, 1):
                first.setdefault(stack, number)
                last[stack] = number
            numbers = sorted({*first.values(), *last.values()})
        if most is not None and len(numbers) > most:
            numbers = sorted(random.Random(seed).sample(numbers, most))
        return n, numbers

    def blocks(self):
        """What the process holds of the allocator, in blocks, once that rests."""
        last, same = None, 0
        while same < 3:
            now = self.get("blocks")
            same = same + 1 if now == last else 0
            last = now
            time.sleep(0.004)
        return last

    def trace(self):
        """Who made the first call that failed, innermost first, for a person."""
        raw = self.page[TRACE_AT:CONTROL_BYTES].split(b"\0")[0].decode(errors="replace")
        lines = []
        for line in raw.splitlines():
            found = re.match(r"(\S+)\+0x([0-9a-f]+) (\S+)", line)
            if found and found[1].endswith("gptd") and shutil.which("addr2line"):
                where = subprocess.run(["addr2line", "-fsie", found[1], hex(int(found[2], 16) - 1)],
                                       capture_output=True, text=True).stdout.split("\n")
                line = " < ".join(f"{a} {b}" for a, b in zip(where[::2], where[1::2]))
            elif found:
                line = f"{Path(found[1]).name} {found[3]}"
            lines.append("  " + line)
        return "\n".join(lines)


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))
