"""GUI data for AndesVL-class models: rendered screens, hit-tested elements, four tasks."""
