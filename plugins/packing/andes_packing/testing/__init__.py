"""What packing adds to the conformance kit: checks of formats, and a reference format."""
