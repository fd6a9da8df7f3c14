"""mlpt pretrains encoder language models while learning how to pretrain them."""

__version__ = "0.1.0"
