"""Encoders with heads, and what can be wrapped around them."""
