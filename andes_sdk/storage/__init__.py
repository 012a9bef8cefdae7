"""Where weights come from and go to: checkpoints and packed models."""
