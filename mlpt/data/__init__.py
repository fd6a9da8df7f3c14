"""Text to fixed blocks of token ids on disk, and the order in which training reads them."""
