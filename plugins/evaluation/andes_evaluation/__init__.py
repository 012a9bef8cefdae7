"""Evaluation: benchmarks of plugins, run on a pipeline."""
