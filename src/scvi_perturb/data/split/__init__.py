"""Split a screen into training, validation and held-out cells."""
