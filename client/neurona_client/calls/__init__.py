"""What one call does, without I/O, and the two drivers that perform it."""
