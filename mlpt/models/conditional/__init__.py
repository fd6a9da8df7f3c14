"""Encoders that are conditioned on the task of each row (CA-MTL)."""
