"""Bad inputs, faults and strange files: what the package makes of them."""
