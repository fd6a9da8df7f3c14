"""From a configuration to a finished run: its folder, its blocks, its parts, its start and what is written about it."""
