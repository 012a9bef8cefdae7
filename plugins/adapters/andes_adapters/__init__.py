"""LoRA adapters that peft saved: read, attached to pipelines, merged into weights."""
