"""The AndesVL family: its catalogue, the published checkpoint layout, transformers' Auto classes."""
