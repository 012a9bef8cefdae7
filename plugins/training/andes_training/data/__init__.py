"""Training data: samples read by index from JSON Lines, Parquet and WebDataset shards; what is wrong with them."""
