"""Benchmarks that anyone can run: `mlpt bench`. A case is one file with `run() -> list[Row]`, named in `mlpt.bench.cases`."""
