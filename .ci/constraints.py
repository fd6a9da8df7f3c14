"""Write the exact versions that a fresh installation gets today: `python3.11 .ci/constraints.py constraints.txt`.

Everything that mlpt and all its extras bring, torch and the packages of its CUDA builds left out: which build of torch
is right depends on the machine. `tests/test_setup.py` holds the file against pyproject.toml.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)
LEFT_OUT = re.compile(r"torch|triton|mlpt|nvidia-.*|cuda-.*")
HEADING = """\
# Exact versions that `make` installs; `pip install .` keeps the ranges of pyproject.toml. Refresh: make constraints
# Without torch and its CUDA packages, whose builds depend on the machine (see Makefile).
"""


def main(target: str) -> None:
    """Install everything into a new environment and write its versions to `target`."""
    if sys.version_info[:2] != OLDEST:
        sys.exit(f"run this with Python {'.'.join(map(str, OLDEST))}: versions for newer ones may lack it")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    torch = next(requirement for requirement in project["dependencies"] if requirement.startswith("torch"))
    everything = f"{ROOT}[{','.join(project['optional-dependencies'])}]"
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [f"{folder}/bin/python", "-m", "pip"]
        for what in (["--upgrade", "pip"], [torch], ["--editable", everything]):
            subprocess.run([*pip, "install", "--quiet", *what], check=True, cwd=folder)
        subprocess.run([*pip, "check"], check=True, stdout=subprocess.DEVNULL)
        listed = subprocess.run([*pip, "list", "--format=freeze"], check=True, capture_output=True, text=True).stdout
    Path(target).write_text(constraints(listed))


def constraints(listed: str) -> str:
    """The file's text for the output of `pip list --format=freeze`; names spelt as pip compares them, sorted."""
    pins = (line.strip().partition("==") for line in listed.splitlines())
    versions = {re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in pins if name}
    kept = sorted(name for name in versions if not LEFT_OUT.fullmatch(name))
    return HEADING + "".join(f"{name}=={versions[name]}\n" for name in kept)


if __name__ == "__main__":
    main(sys.argv[1])
