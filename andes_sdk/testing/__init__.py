"""The conformance kit: what a plugin must keep to, as tests that anyone can run on their own plugin."""
