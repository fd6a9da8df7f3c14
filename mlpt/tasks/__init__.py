"""Labelled tasks, their files and their metrics."""
