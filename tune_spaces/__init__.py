"""Search spaces and schedulers for `mlpt tune`."""
