"""Compression: compressors run, models packed into one file, and the bits that they take."""
