"""What `import mlpt` offers: the commands as functions. A command parses its words and calls the same function."""
