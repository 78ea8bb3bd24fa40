"""The house rules that a machine can check: floors, types, style, sizes, and who may name or import what."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "pomona").rglob("*.py"))
HEAVY = {"torch", "transformers", "tensorflow", "coremltools", "gguf", "lm_eval", "libtpu", "datasets", "pyarrow"}
MOST_FILE_LINES, MOST_FUNCTION_LINES = 420, 65


@pytest.mark.parametrize(
    "tool", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports"]]
)
def test_make_check_passes(tool):
    command = [str(Path(sys.executable).parent / tool[0]), *tool[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_is_small_and_says_what_it_is(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module opens with what it is"
    assert len(text.splitlines()) <= MOST_FILE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < MOST_FUNCTION_LINES, node.name
        public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        if public and node in tree.body:
            assert ast.get_docstring(node), f"{node.name} says what it does"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_heavy_libraries_are_imported_inside_functions(path):
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {each.split(".")[0] for each in names} & HEAVY


@pytest.mark.parametrize("path", [p for p in FILES if "parallel" not in p.parts], ids=name)
def test_only_parallel_names_mesh_axes(path):
    strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    assert not strings & {"fsdp", "seq", "tensor"}


def test_a_wall_without_a_room_is_a_mistake():
    assert not {path.parent.name for path in FILES} & {"utils", "common", "misc", "lib", "helpers"}
    contract = (ROOT / "pyproject.toml").read_text()
    outer, inner = re.findall(r"layers = \[(.*?)\]", contract, flags=re.DOTALL)
    packages = [path.parent.relative_to(ROOT / "pomona").parts for path in FILES]
    rooms = {parts[0] for parts in packages if parts}
    assert rooms == set(re.findall(r"pomona\.(\w+)", outer)), "each folder stands on a floor"
    wing = {parts[1] for parts in packages if parts[:1] == ("private",) and len(parts) > 1}
    assert wing == set(re.findall(r"\w+", inner)), "and in the private cloud on one of its own"


def test_no_address_of_a_registry_is_in_the_project():
    for path in [*ROOT.glob("constraints/*"), ROOT / "pyproject.toml", ROOT / "Makefile"]:
        assert "://" not in path.read_text().replace("https://keepachangelog", ""), path
