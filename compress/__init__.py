"""Stages that change the encoder: score, prune, finetune, quantize."""
