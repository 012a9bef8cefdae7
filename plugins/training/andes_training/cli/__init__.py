"""`andes train`, `andes report` and `andes data`."""
