"""How much memory a process on this machine can still get: what Linux says is available, and what its control groups allow.

/proc and /sys -> bytes
"""

from __future__ import annotations

from pathlib import Path

_UNLIMITED = 1 << 60  # version 1 of control groups writes a number near 2^63 where there is no limit


def available_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that can be had without swapping; None where the system does not tell (no Linux)."""
    found = [count for count in (_of_machine(proc), _of_groups(proc, groups)) if count is not None]
    return min(found) if found else None


def _of_machine(proc: Path) -> int | None:
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _of_groups(proc: Path, groups: Path) -> int | None:
    """Limit less use of this process's group and of all that it lies in. What a group uses holds files that can be let go."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None
    left: list[int] = []
    for line in lines:
        _, kinds, place = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        root = groups / kinds
        limit, use = (
            ("memory.max", "memory.current") if not kinds else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        here = root / place.lstrip("/")
        for folder in (here, *(above for above in here.parents if above == root or root in above.parents)):
            try:
                most, used = int((folder / limit).read_text()), int((folder / use).read_text())
                files = dict(part.split() for part in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such group here (a container sees its own as the root), or "max"
                continue
            if most < _UNLIMITED:
                freed = int(files.get("inactive_file", 0)) + int(files.get("active_file", 0))
                left.append(max(0, most - used + freed))
    return min(left) if left else None
