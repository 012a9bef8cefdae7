"""From messages and pictures to tensors."""
