"""What training adds to the conformance kit: checks of training stages, batches for them, reference stages."""
