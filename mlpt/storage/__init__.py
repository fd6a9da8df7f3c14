"""What is kept: state as one type, files on any URI, atomic writes, checkpoints and their copies."""
