"""Named, tested configurations for `mlpt pretrain RECIPE`."""
