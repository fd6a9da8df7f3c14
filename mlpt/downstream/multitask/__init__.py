"""One encoder trained on several labelled tasks at once."""
