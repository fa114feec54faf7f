"""Compiles this package's own kernels when a wheel or an editable installation is built; `pip` runs it.

Without a C compiler, or for another processor than x86-64, the package is installed without them, and frameworks' own
kernels do their work. The C compiler is $CC, else cc.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("distilbert/native")
LIBRARY = SOURCES / "libdistilbert.so"
SYSTEM = "linux-x86_64"  # that the kernels are for
OPTIONS = ("-std=c11", "-O3", "-fPIC", "-D_GNU_SOURCE")
UNITS = ("f", "bw", "dq", "vl", "vnni", "bf16")  # of AVX-512; kinds.c, without them, says which the processor has


class KernelsHook(BuildHookInterface):  # pyright: ignore[reportMissingTypeArgument]
    """Puts the compiled library into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - the interface's
        """Compile, and say in the wheel's name which system it is for."""
        root = Path(self.root)
        if not compile_library(root):
            return
        build_data["artifacts"].append(str(LIBRARY))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{SYSTEM.replace('-', '_')}"


def compile_library(root: Path) -> bool:
    """Compile the library into the source tree; whether it could be."""
    library = root / LIBRARY
    if sysconfig.get_platform() != SYSTEM:
        library.unlink(missing_ok=True)
        return False
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / name) for name in ("kinds.o", "encoder.o", "libdistilbert.so")]
        try:
            compiler = shlex.split(os.environ.get("CC") or "cc")
            compile_objects(root, compiler, objects)
            ctypes.CDLL(objects[2])  # it can be loaded, by this interpreter
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            print(f"distilbert is installed without its own kernels: {said.strip()}", file=sys.stderr)
            library.unlink(missing_ok=True)
            return False
        complete = library.with_suffix(".part")
        complete.write_bytes(Path(objects[2]).read_bytes())
        complete.chmod(0o755)
        complete.replace(library)  # other processes have the old one, or the new one
    return True


def compile_objects(root: Path, compiler: list[str], objects: list[str]) -> None:
    """Compile kinds.c and encoder.c into the first two of `objects`, and link the third, a library, from them.

    Raises:
        OSError: there is no such compiler. CalledProcessError: it failed.
    """
    units = ["-mfma", *(f"-mavx512{unit}" for unit in UNITS)]
    for command in (
        [*compiler, *OPTIONS, "-c", str(root / SOURCES / "kinds.c"), "-o", objects[0]],
        [*compiler, *OPTIONS, *units, "-c", str(root / SOURCES / "encoder.c"), "-o", objects[1]],
        [*compiler, "-shared", *objects[:2], "-o", objects[2], "-lm", "-lpthread"],
    ):
        subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - the user's compiler
