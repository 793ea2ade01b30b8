"""Rules for the source, the README's examples, the pages of measurements, and the wheel."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "llamagpu"
# A room (a package) may import itself and the rooms listed for it.
ROOMS = ("evaluation", "cli", "server", "jobs", "bench", "engine", "browser", "model", "text", "kernels", "gpu", "page")
MAY_IMPORT = {
    "evaluation": {"cli", "engine", "text"},
    "cli": {"server", "jobs", "bench", "engine", "browser", "model", "text", "kernels", "gpu"},
    "server": {"engine", "model", "text", "page"},
    "jobs": {"engine"},
    "bench": {"engine", "model", "kernels", "gpu"},
    "engine": {"model", "text", "kernels", "gpu"},
    "browser": {"page", "model", "text", "kernels", "gpu"},
    "model": {"kernels", "gpu"},
    "text": set(),
    "kernels": {"gpu"},
    "gpu": set(),
    "page": set(),
}
BELOW_ALL = {"errors", "version"}  # modules that every room may import


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at any level."""
    out: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            out |= {f"{node.module}.{a.name}" for a in node.names}
    return out


@pytest.mark.parametrize("room", ROOMS)
def test_lower_rooms_never_import_upper_ones(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "llamagpu":
                assert parts[1] in MAY_IMPORT[room] | {room} | BELOW_ALL, f"{path} imports {name}"
            assert room == "gpu" or parts[0] != "wgpu", f"{path} imports wgpu"


def test_files_and_functions_stay_small() -> None:
    for path in (ROOT / "shaders").rglob("*.wgsl"):
        assert len(path.read_text().splitlines()) <= 150, path
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 40, f"{path}: {node.name}"


def test_every_public_name_has_a_docstring() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"


# --- README --------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


# the example of AsyncLLM does what tests/test_async.py does
EXAMPLES = [pytest.param(c, marks=pytest.mark.slow) if "asyncio" in c else c for c in blocks("python")]


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda c: c.strip().splitlines()[-1][:30])
def test_python_examples(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


COMMANDS = [
    line.removeprefix("$ ")
    for block in blocks("console")
    for line in block.splitlines()
    if line.startswith("$ ") and "llamagpu" in line and "pip" not in line and "<" not in line
]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_command_examples(command: str) -> None:
    line = command.replace("llamagpu ", f"{sys.executable} -m llamagpu ", 1)
    if "| llamagpu" in command:
        line = command.replace("| llamagpu ", f"| {sys.executable} -m llamagpu ")
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=180, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_readme_has_examples() -> None:
    assert len(blocks("python")) >= 3
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("bench_gpu", "gpu-nvidia-h200"),
        ("bench_peers", "peers"),
        ("bench_embeddings", "embeddings"),
        ("bench_browser", "browser"),
        ("check_models", "models"),
        ("gguf_table", "gguf"),
        ("eval_peers", "lm-eval"),
        ("make_template_goldens", "chat-templates"),
        ("fault_table", "recovery"),
        ("soak", "soak"),
        ("soak_server", "server-soak"),
        ("bench_serving", "serving"),
        ("bench_invariance", "invariance"),
        ("mutate", "mutation"),
        ("check_shapes", "structured-output"),
    ],
)
def test_pages_match_their_measurements(script: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])  # where a script finds its neighbours
    spec = importlib.util.spec_from_file_location(script, ROOT / "scripts" / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, script, module)  # dataclasses look the module up
    spec.loader.exec_module(module)
    found = json.loads((ROOT / "docs" / f"{name}.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") == module.page(found)


# --- wheel ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built offline with the installed backend."""
    folder = tmp_path_factory.mktemp("wheel")
    code = f"import hatchling.build as b; print(b.build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.strip().splitlines()[-1]


def tracked(folder: str) -> set[str]:
    files = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(files.split())


@pytest.mark.slow
def test_the_wheel_holds_exactly_the_tracked_files(wheel: Path) -> None:
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    expected = tracked("llamagpu") | {f"llamagpu/{n}" for n in tracked("shaders") | tracked("weights")}
    assert names == expected
    assert wheel.stat().st_size < 10_000_000


@pytest.mark.slow
def test_the_installed_wheel_generates_text(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*install, "--target", str(target), str(wheel)], check=True, timeout=120, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r}); import llamagpu; from llamagpu.gpu import shader_root;"
        f"assert llamagpu.__file__.startswith({str(target)!r}) and str(shader_root()).startswith({str(target)!r});"
        "print(llamagpu.LLM().generate('Once upon a time', max_tokens=12).text)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 4
