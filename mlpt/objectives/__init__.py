"""Pretraining objectives: how tokens become inputs, and what is learned from them."""
