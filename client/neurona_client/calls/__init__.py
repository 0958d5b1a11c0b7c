"""Operations (what one call does, without I/O) and the two drivers that run them."""
