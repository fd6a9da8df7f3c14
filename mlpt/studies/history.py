"""When a study was declared, by what digest, and what was added since: `declared.json`.

What is compared is said before it is measured. Seeds and cells may be added later, and the table says that they were.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlpt.config import read_recipe
from mlpt.errors import UserError
from mlpt.outputs import read_json, write_json
from mlpt.studies.reading import Study

FILE = "declared.json"


@dataclass(frozen=True)
class Declared:
    """A study's place in time. `added`: what came later, one line each."""

    when: str
    digest: str
    added: list[str]


def declare(study: Study, out: Path) -> Declared:
    """Write down what is declared, or compare it with what was.

    Raises `UserError` where something else than seeds and cells has changed since.
    """
    now, file = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), out / FILE
    parts = _parts(study)
    if not file.is_file():
        kept: dict[str, Any] = {"when": now, "digest": _digest(parts), **parts, "added": []}
        write_json(file, kept)
        return _declared(kept)
    kept = read_json(file)
    _refuse_changes(kept, parts, out)
    added = {
        "cells": [name for name in parts["cells"] if name not in kept["cells"]],
        "seeds": [seed for seed in parts["seeds"] if seed not in kept["seeds"]],
    }
    if any(added.values()):
        kept["cells"] |= {name: parts["cells"][name] for name in added["cells"]}
        kept["seeds"] += added["seeds"]
        kept["added"].append({"when": now, **added})
        write_json(file, kept)
    return _declared(kept)


def _parts(study: Study) -> dict[str, Any]:
    """All that determines the numbers and what is said of them, as plain data."""
    declared = json.loads(study.declared.model_dump_json())
    cells, seeds = declared.pop("cells"), declared.pop("seeds")
    declared.pop("keep")
    recipes = [study.declared.base.recipe, *(cell.recipe for cell in study.declared.cells.values())]
    named = {name or "quickstart": read_recipe(name or "quickstart") for name in recipes}
    for cell in cells.values():
        cell["recipe_read"] = named.get(cell["recipe"]) if cell["recipe"] else None
    base = study.declared.base.recipe or "quickstart"
    fixed = {**declared, "command_line": study.given, "base_recipe": named[base]}
    return {"fixed": json.loads(json.dumps(fixed)), "cells": json.loads(json.dumps(cells)), "seeds": seeds}


def _digest(parts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _refuse_changes(kept: Mapping[str, Any], parts: Mapping[str, Any], out: Path) -> None:
    fixed = [key for key, value in parts["fixed"].items() if kept["fixed"].get(key) != value]
    changed = [f"cell '{name}'" for name, cell in kept["cells"].items() if parts["cells"].get(name) != cell]
    lost = [f"seed {seed}" for seed in kept["seeds"] if seed not in parts["seeds"]]
    if fixed or changed or lost:
        what = ", ".join([*fixed, *changed, *lost])
        raise UserError(
            f"{out} holds this study as it was declared on {kept['when']}, and since then this has changed: {what}; "
            "only seeds and cells may be added (--seeds and --cells run a part). Undo that, or begin anew by --out NEW"
        )


def _declared(kept: Mapping[str, Any]) -> Declared:
    added = []
    for one in kept["added"]:
        words = [f"cells {', '.join(one['cells'])}"] if one["cells"] else []
        words += [f"seeds {', '.join(map(str, one['seeds']))}"] if one["seeds"] else []
        added.append(f"{one['when']}: {' and '.join(words)}")
    return Declared(kept["when"], kept["digest"], added)
