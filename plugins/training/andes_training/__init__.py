"""Training: one loop for all stages, on Accelerate; packing; restartable state."""
