"""Benchmarks that anyone can run with `mlpt bench`; a case is one file with `run() -> list[Row]`."""
