"""Names and signatures of TensorRT's real Python bindings, of each version the runtime knows.

NVIDIA publishes the bindings without the libraries behind them. Importing them calls nothing there,
so libraries of empty functions with the right names are enough to look at what they offer.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.rtx.assemble import assembled_tensorrt
from tests.rtx.wheels_folder import FixtureUnavailable, folder_of_wheels

HERE = Path(__file__).resolve().parent
RTX = "rtx"  # the whole TensorRT-RTX, whose bindings need no stub
BINDINGS = ("8.6", "10.3", "10.13", "10.16", "11.4", RTX)

# What the bindings want from TensorRT's libraries, among what they want from Python and libc.
_THEIRS = re.compile(r"Infer|Nv[A-Z]|PluginRegistry|nvuffparser|nvcaffeparser")
_BRACKETS = re.compile(r"[\[{(<][^\[\]{}()<>]*[\]})>]")
_LIBRARY = re.compile(r"\(NEEDED\).*\[(libnv\w+\.so\.\d+)\]")


@dataclass(frozen=True)
class Names:
    """module: name -> docstring. classes: class -> member -> docstring ("" where there is none)."""

    version: tuple[int, int, int]
    module: dict[str, str]
    classes: dict[str, dict[str, str]]

    def has(self, dotted: str) -> bool:
        """Whether "Builder", "init_libnvinfer_plugins" or "Builder.create_network" exists."""
        owner, _, member = dotted.partition(".")
        return member in self.classes.get(owner, ()) if member else owner in self.module

    def signatures(self, dotted: str) -> list[tuple[str, ...]]:
        """The parameters of each overload of "Class.method", without self; "name=" is optional."""
        owner, _, member = dotted.partition(".")
        doc = self.classes[owner][member]
        found = re.findall(rf"^\s*(?:\d+\. )?{member}\((.*)\) ->", doc, re.MULTILINE)
        return [_parameter_names(text) for text in found]


def _parameter_names(text: str) -> tuple[str, ...]:
    """ "self: T, stream_handle: int, x: Dict[str, int] = {}" -> ("stream_handle", "x=")."""
    flat = text
    while _BRACKETS.search(flat):
        flat = _BRACKETS.sub("", flat)
    names = [
        part.split(":")[0].split("=")[0].strip() + ("=" if "=" in part else "")
        for part in flat.split(",")
    ]
    return tuple(name for name in names if name and name != "self")


@cache
def names_of_bindings(which: str) -> Names:
    """`which` is one of BINDINGS. Raises FixtureUnavailable."""
    if which == RTX:
        folder = assembled_tensorrt()
        path = folder / "names.json"
        if not path.is_file():
            _dump("tensorrt_rtx", folder, path)
    else:
        sources = (Path(__file__), HERE / "dump_names.py")
        folder = folder_of_wheels(f"bindings-{which}", *sources, finish=_with_names)
        path = folder / "names.json"
    names = json.loads(path.read_text(encoding="utf-8"))
    first, second, third = (int(part) for part in names["version"].split(".")[:3])
    return Names((first, second, third), names["module"], names["classes"])


def _with_names(folder: Path) -> None:
    extension = folder / "tensorrt_bindings" / "tensorrt.so"
    wanted = _output("nm", "-D", "--undefined-only", str(extension))
    libraries = _LIBRARY.findall(_output("readelf", "-d", str(extension)))
    symbols = [line.split()[-1] for line in wanted.splitlines()]
    symbols = [name for name in symbols if _THEIRS.search(name) and "@" not in name]
    source = folder / "stub.c"
    lines = [f"void *{name}(void) {{ return 0; }}" for name in symbols]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for library in libraries:
        target = str(extension.with_name(library))
        _output("cc", "-shared", "-fPIC", "-w", "-o", target, str(source))
    _dump("tensorrt_bindings", folder, folder / "names.json")


def _dump(module: str, folder: Path, path: Path) -> None:
    """In a process of its own, for two versions cannot live in one."""
    temporary = path.with_name(f"names.{os.getpid()}.tmp")
    program = str(HERE / "dump_names.py")
    _output(sys.executable, program, module, str(temporary), pythonpath=str(folder))
    temporary.rename(path)


def _output(program: str, *arguments: str, pythonpath: str = "") -> str:
    if shutil.which(program) is None:
        raise FixtureUnavailable(f"the program {program} is not installed (gcc and binutils)")
    environment = {**os.environ, "PYTHONPATH": pythonpath} if pythonpath else None
    done = subprocess.run(
        [program, *arguments],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise FixtureUnavailable(f"{program} failed ({done.returncode}): {done.stderr[-500:]}")
    return done.stdout
