"""Everything that imports ray.tune: spaces, sweeps, their trials and reports."""
