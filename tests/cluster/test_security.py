"""The promises of docs/SECURITY.md that the source itself can break."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for room in ("mlpt", "tune_spaces", "cluster") for path in (ROOT / room).rglob("*.py"))
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "joblib.load"}
PICKLERS = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_unpickles_evaluates_runs_a_shell_or_trusts_remote_code(path):
    tree = ast.parse(path.read_text())
    for name, call in calls(tree):
        assert name not in FORBIDDEN_CALLS, f"line {call.lineno}"
        keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert keywords.get("shell", "False") == "False", f"line {call.lineno}"
        assert keywords.get("trust_remote_code", "False") == "False", f"line {call.lineno}"
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", f"line {call.lineno}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in PICKLERS, f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in PICKLERS:
            # The name of the error that a refused pickle raises is all that is needed of these modules.
            assert node.attr == "UnpicklingError", f"line {node.lineno}"
