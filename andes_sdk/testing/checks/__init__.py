"""The checks, a file per kind of plugin."""
