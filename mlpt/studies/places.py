"""Where a study keeps what: `OUT/runs/CELL/seed0`, `OUT/measured/MEASUREMENT/CELL/seed0`, and logs of both."""

from dataclasses import dataclass
from pathlib import Path

from mlpt.studies.reading import folder_of


@dataclass(frozen=True)
class Places:
    """The folders and files of the study in `out`."""

    out: Path

    def run(self, cell: str, seed: int) -> Path:
        """An ordinary run's folder."""
        return self.out / "runs" / folder_of(cell) / f"seed{seed}"

    def pilot(self, cell: str) -> Path:
        """The run that measures how many steps of a cell fit into a budget of seconds."""
        return self.out / "runs" / folder_of(cell) / "pilot"

    def measured(self, measurement: str, cell: str, seed: int) -> Path:
        """What a command after the run leaves."""
        return self.out / "measured" / folder_of(measurement) / folder_of(cell) / f"seed{seed}"

    def asked(self, folder: Path) -> Path:
        """The configuration with which the run or command of a folder is started."""
        name = folder.relative_to(self.out)
        return self.out / "asked" / name.with_name(f"{name.name}.yaml")

    def log(self, folder: Path) -> Path:
        """What the run or command of a folder said."""
        name = folder.relative_to(self.out)
        return self.out / "logs" / name.with_name(f"{name.name}.log")
