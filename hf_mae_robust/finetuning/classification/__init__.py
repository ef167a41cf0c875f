"""Image classification: fine-tuning, linear probes, LoRA."""
