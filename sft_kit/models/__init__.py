"""Checkpoints, quantization and adapters."""
