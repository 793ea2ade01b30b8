"""Links shaders from whole WGSL files, without templates.

A kernel's file states its needs in lines that start with ``//!``:

    //! needs weights reduce      interfaces: the linker prepends the chosen file of ``lib/weights/``; an interface
                                  with a single implementation is one file, ``lib/paged.wgsl``
    //! const COLS ROWS           constants of the code: the linker prepends a ``const`` line for each

A file may also have ``//! enable f16`` or ``//! enable subgroups``. Compilers want different lines for them, so a
program is linked for a target. The linker reads bindings and the fields of ``struct Params`` from the linked text, so
only the shader states them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from llamagpu.errors import KernelError

Target = Literal["native", "browser"]

# The lines that each target's compiler wants for an ``//! enable``. naga (native) takes subgroup operations once the
# feature is requested, and rejects the enable line that browsers need. Older browsers cannot prove that control flow is
# uniform within a subgroup, so the diagnostic for it is off.
_ENABLE_LINES: dict[Target, dict[str, tuple[str, ...]]] = {
    "native": {"f16": ("enable f16;",), "subgroups": ()},
    "browser": {
        "f16": ("enable f16;",),
        "subgroups": ("enable subgroups;", "diagnostic(off, subgroup_uniformity);"),
    },
}
_BINDING = re.compile(
    r"@group\((\d+)\)\s*@binding\((\d+)\)\s*var<\s*(storage\s*,\s*read_write|storage\s*,\s*read|storage|uniform)\s*>\s*(\w+)"
)
_PARAMS = re.compile(r"struct Params\s*\{(.*?)\}", re.S)
_FIELD = re.compile(r"(\w+)\s*:\s*(u32|i32|f32)")
_NEEDS = re.compile(r"^//! needs (.+)$", re.M)
_CONST = re.compile(r"^//! const (.+)$", re.M)
_ENABLE = re.compile(r"^//! enable (\w+)", re.M)


def shader_root() -> Path:
    """The folder of the WGSL files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "shaders"
    return inside if inside.is_dir() else package.parent / "shaders"


@dataclass(frozen=True)
class Program:
    """A kernel and its choices: interface implementations, constants, override values, entry point."""

    shader: str
    libs: tuple[tuple[str, str], ...] = ()
    consts: tuple[tuple[str, int], ...] = ()
    overrides: tuple[tuple[str, int], ...] = ()
    entry: str = "main"

    @property
    def label(self) -> str:
        choices = [impl for _, impl in self.libs] + [f"{k}={v}" for k, v in self.consts + self.overrides]
        entry = "" if self.entry == "main" else f":{self.entry}"
        return f"{self.shader}{entry}" + (f"[{' '.join(choices)}]" if choices else "")


@dataclass(frozen=True)
class Binding:
    """One storage or uniform variable of a linked module."""

    group: int
    index: int
    kind: str  # "uniform", "read-only-storage" or "storage"
    name: str


@dataclass(frozen=True)
class Linked:
    """A linked module: its text, the source of each line, its bindings and its uniform fields in order."""

    code: str
    lines: tuple[tuple[str, int], ...]
    bindings: tuple[Binding, ...]
    params: tuple[tuple[str, str], ...]

    def locate(self, message: str) -> str:
        """A compiler's message with ``wgsl:LINE:COL`` replaced by the source file and its line."""

        def place(m: re.Match[str]) -> str:
            line = int(m[1])
            file, at = self.lines[line - 1] if 0 < line <= len(self.lines) else ("?", line)
            return f"shaders/{file}:{at}"

        return re.sub(r"(?:\w*wgsl|Shader '[^']*'):(\d+)(?::\d+)?", place, message)


@lru_cache(maxsize=256)
def _source(name: str) -> str:
    path = shader_root() / f"{name}.wgsl"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise KernelError(f"There is no shader {name}.wgsl.", f"It would be in {path.parent}.") from None


def _words(pattern: re.Pattern[str], text: str) -> list[str]:
    return [word for line in pattern.findall(text) for word in line.split()]


def _files(program: Program) -> list[str]:
    """The files in linking order: every interface once, before the first file that needs it."""
    chosen, order = dict(program.libs), []

    def visit(name: str) -> None:
        for interface in _words(_NEEDS, _source(name)):
            file = f"lib/{interface}/{chosen[interface]}" if interface in chosen else f"lib/{interface}"
            if file not in order:
                visit(file)
        order.append(name)

    visit(program.shader)
    return order


@lru_cache(maxsize=1024)
def link(program: Program, target: Target = "native") -> Linked:
    """Link a program: its library files, then the kernel.

    Args:
        target: ``native`` for naga, as wgpu uses it, or ``browser``. Only the head of the text differs.

    Raises:
        KernelError: a file, an interface or a constant is missing, or two files bind the same slot.
    """
    files = _files(program)
    text = {name: _source(name) for name in files}
    consts = dict(program.consts)
    wanted = {word for name in files for word in _words(_CONST, text[name])}
    if wanted != set(consts):
        raise KernelError(f"{program.label}: constants {sorted(wanted ^ set(consts))} are missing or unknown.")
    enables = {word for name in files for word in _words(_ENABLE, text[name])}
    if unknown := enables - _ENABLE_LINES[target].keys():
        raise KernelError(f"{program.label}: the linker knows no enable {sorted(unknown)}.")
    head = [line for word in sorted(enables) for line in _ENABLE_LINES[target][word]]
    head += [f"const {k}: u32 = {v}u;" for k, v in program.consts]
    code, lines = list(head), [("(linker)", i + 1) for i in range(len(head))]
    for name in files:
        body = text[name].splitlines()
        code += body
        lines += [(f"{name}.wgsl", i + 1) for i in range(len(body))]
    joined = "\n".join(code) + "\n"
    kinds = {"uniform": "uniform", "storage,read": "read-only-storage", "storage,read_write": "storage"}
    bindings = tuple(
        Binding(int(g), int(b), kinds[re.sub(r"\s", "", kind)], name) for g, b, kind, name in _BINDING.findall(joined)
    )
    if len({(b.group, b.index) for b in bindings}) != len(bindings):
        raise KernelError(f"{program.label}: two bindings share a slot.")
    fields = _PARAMS.search(joined)
    return Linked(joined, tuple(lines), bindings, tuple(_FIELD.findall(fields[1])) if fields else ())
