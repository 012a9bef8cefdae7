"""Benchmarks of the field: each says what its rows mean, what is asked, and how an answer is scored."""
