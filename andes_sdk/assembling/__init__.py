"""From a list of plugins to a plan, and from a plan to modules."""
