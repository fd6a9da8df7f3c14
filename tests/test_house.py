"""The rules of the house that a machine can check: where Ray is imported, which way imports run, how long files are."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "mlpt").rglob("*.py"))

# Each room may import from itself and from rooms below it (a larger number is higher up).
HEIGHT = {
    "cores": 0,
    "errors": 0,
    "registry": 0,
    "storage": 0,
    "setting_names": 0,
    "settings": 0,
    "yaml_text": 0,
    "setting_list": 0,
    "outputs": 0,
    "randomness": 0,
    "logs": 0,
    "stopping": 0,
    "tasks": 1,
    "data": 1,
    "reporting": 1,
    "arms": 2,
    "objectives": 2,
    "models": 3,
    "sparsity": 4,
    "questioning": 4,
    "meta": 4,
    "training": 5,
    "downstream": 6,
    "config": 7,
    "recipes": 7,
    "run": 8,
    "runtime": 9,
    "tuning": 10,
    "run/launch": 10,
    "bench": 11,
    "studies": 11,
    "api": 11,
    "cli_options": 12,
    "cli_masks": 12,
    "cli_finetune": 12,
    "cli_suites": 12,
    "cli_question": 12,
    "cli_push": 12,
    "cli_study": 12,
    "cli_report": 12,
    "cli_settings": 12,
    "cli": 12,
    "reference": 13,
    "__main__": 13,
}


def imports_of(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "mlpt").parts[0].removesuffix(".py")


def height_of(parts: Sequence[str]) -> int:
    """Of the module `parts`, the names after `mlpt`: its own height if it has one, else that of its room."""
    return HEIGHT.get("/".join(parts[:2]), HEIGHT[parts[0]])


def test_only_the_runtime_imports_ray():
    guilty = [
        str(path.relative_to(ROOT))
        for path in FILES
        if room_of(path) not in ("runtime", "tuning") and any(name.split(".")[0] == "ray" for name in imports_of(path))
    ]
    assert guilty == []


def test_imports_run_downhill():
    guilty = []
    for path in FILES:
        if room_of(path) == "__init__":
            continue
        height = height_of(path.relative_to(ROOT / "mlpt").with_suffix("").parts)
        for name in imports_of(path, top_level_only=True):
            parts = name.split(".")
            if parts[0] == "mlpt" and len(parts) > 1 and height_of(parts[1:]) > height:
                guilty.append(f"{path.relative_to(ROOT)} imports {name}")
    assert guilty == []


@pytest.mark.parametrize(
    ("imports", "heavy"),
    [
        ("import mlpt, mlpt.cli; dir(mlpt)", {"torch", "ray", "transformers", "pandas", "pyarrow", "pydantic"}),
        ("import mlpt.runtime.hub", {"torch", "transformers", "datasets"}),  # an actor's process
        ("import mlpt.data.shards, mlpt.data.prepare, mlpt.data.describe", {"torch", "transformers", "datasets"}),
    ],
)
def test_what_need_not_wait_for_deep_learning_does_not_import_it(imports, heavy):
    program = f"import sys; {imports}; print(*{heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []  # torch alone takes longer than starting the rest


def test_engines_know_nothing_of_rules_and_state_nothing_of_what_has_it():
    """Within a room: any bilevel problem can be given to an engine, and anything can keep a `State`."""
    allowed = {
        "meta/engines": ("mlpt.errors", "mlpt.meta.engines"),
        "storage/state.py": (),
        "storage/": ("mlpt.errors", "mlpt.storage"),
        "registry.py": ("mlpt.errors",),
    }
    guilty = [
        f"{path.relative_to(ROOT)} imports {name}"
        for room, rooms in allowed.items()
        for path in FILES
        if path.relative_to(ROOT / "mlpt").as_posix().startswith(room)
        for name in imports_of(path)
        if name.startswith("mlpt") and not name.startswith(rooms)
    ]
    assert guilty == []


def test_there_is_one_way_to_print():
    """`mlpt.reporting.text`: what users named must not be read as markup, wherever it is printed."""
    allowed = {"bench", "reporting"}
    guilty = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
            if name in ("print", "Console") and room_of(path) not in allowed:
                guilty.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert guilty == []


def test_what_people_name_is_expanded_in_one_place():
    """`Path.expanduser` raises a `RuntimeError` for ~somebody; `mlpt.outputs.places` does not."""
    assert [str(path.relative_to(ROOT)) for path in FILES if ".expanduser()" in path.read_text()] == [
        "mlpt/outputs/places.py"
    ]


def test_every_file_can_be_read_in_one_sitting():
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
    assert long == {}


def test_nothing_unpickles_or_evaluates_what_users_hand_in():
    words = ("pickle.load", "weights_only=False", "trust_remote_code=True", "yaml.load(", "shell=True")
    guilty = [(str(path.relative_to(ROOT)), word) for path in FILES for word in words if word in path.read_text()]
    assert guilty == []
