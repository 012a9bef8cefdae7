"""Answer rules: pure functions from an answer's text and the truth to a score."""
