"""Commands: compress, pack, bpw."""
