"""pytest plugin: one summary line with the number of conformance checks that ran."""
