"""C++ source → a loaded library, compiled once for each source, compiler and machine."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from quire.errors import QuireError

HEADERS = Path(__file__).parent.parent / "kernel" / "rt"

FLAGS = (
    "-std=c++20", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden",
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
)  # fmt: skip


def cache_folder() -> Path:
    """Where compiled libraries are kept: `QUIRE_CACHE`, or the user's cache folder."""
    own = os.environ.get("QUIRE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "quire"


def compiler() -> str:
    """The C++ compiler: `CXX`, else g++, clang++ or c++.

    Raises QuireError where there is none.
    """
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["g++", "clang++", "c++"]:
        if name and shutil.which(name):
            return name
    raise QuireError(
        f"no C++ compiler{f' {wanted!r} (from CXX)' if wanted else ''} on this machine",
        allowed="g++ 11 or later, or clang++ 14 or later",
        fix="apt install g++, dnf install gcc-c++, or xcode-select --install; or set CXX",
    )


@functools.cache
def _version(name: str) -> str:
    run = subprocess.run([name, "--version"], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()[0]


@functools.cache
def _machine() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return " ".join(sorted(line.split(":")[1].split()))
    return platform.processor()


def library(source: str, arch: str | None = None, extra: Sequence[str] = ()) -> Path:
    """The shared library of a translation unit, from the cache if it was compiled before.

    `arch` is the compiler's -march (default: `QUIRE_ARCH`, or native). Flags in `QUIRE_CXXFLAGS`
    come after our own.

    Raises QuireError with the compiler's message if it fails.
    """
    name = compiler()
    arch = arch or os.environ.get("QUIRE_ARCH") or "native"
    own = shlex.split(os.environ.get("QUIRE_CXXFLAGS", ""))
    flags = [*FLAGS, f"-march={arch}", *extra, *own]
    parts = [source, *flags, name, _version(name), _machine() if arch == "native" else ""]
    parts += [h.read_text() for h in sorted(HEADERS.glob("*.hpp"))]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.so"
    if not path.exists():
        (folder / f"{key}.cpp").write_text(source)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "kernel.so"
            command = [name, *flags, f"-I{HEADERS}", str(folder / f"{key}.cpp"), "-o", str(made)]
            _compile(command, str(folder / f"{key}.cpp"))
            made.replace(path)
    return path


def compile_file(source: Path, out: Path, arch: str | None = None) -> None:
    """`source` → the shared library `out`. Raises QuireError with the compiler's message."""
    name = compiler()
    own = shlex.split(os.environ.get("QUIRE_CXXFLAGS", ""))
    arch = arch or os.environ.get("QUIRE_ARCH") or "native"
    _compile([name, *FLAGS, f"-march={arch}", *own, f"-I{HEADERS}", str(source), "-o", str(out)])


def _compile(command: Sequence[str], where: str = "") -> None:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise QuireError(
            f"{command[0]} could not compile the kernel:\n{run.stderr[-4000:]}",
            where=where,
            fix="report it with the source",
        )


def read_once(folder: Path, flags: str) -> str:
    """`QUIRE_CXXFLAGS` for many small kernels: `flags`, and with g++ our headers precompiled in
    `folder` (100 MB), which halves the time of each."""
    name = compiler()
    if "g++" not in name:
        return flags
    unit = folder / "unit.hpp"
    unit.write_text(f'#include "{HEADERS / "native.hpp"}"\n')
    arch = os.environ.get("QUIRE_ARCH") or "native"
    made = ["-x", "c++-header", str(unit), "-o", str(folder / "native.hpp.gch")]
    subprocess.run([name, *FLAGS, f"-march={arch}", *shlex.split(flags), *made], check=True)
    return f"{flags} -I{folder}"


def load(path: Path) -> ctypes.CDLL:
    """The library with the signatures of `rt/entry.hpp`."""
    lib = ctypes.CDLL(str(path))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    lib.quire_team.restype = pointer
    lib.quire_team.argtypes = [ctypes.c_int, ctypes.c_double]
    lib.quire_team_free.argtypes = [pointer]
    lib.quire_report.restype = ctypes.c_char_p
    lib.quire_report.argtypes = [pointer]
    lib.quire_run.restype = ctypes.c_int
    lib.quire_run.argtypes = [
        pointer, pointer, ctypes.POINTER(integer), ctypes.POINTER(integer), pointer, integer,
    ]  # fmt: skip
    return lib
