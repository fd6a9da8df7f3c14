"""The report: one HTML page that holds its figures, its plotting library and its text, and needs no network."""
