"""Questions in the terminal: a conversation with a model, or one answer for programs."""
