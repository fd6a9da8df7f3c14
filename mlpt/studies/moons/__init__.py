"""The two-moons study (MetaLMO, Shen 2021): thousands of steps of tiny students and teachers, many cells at once."""
