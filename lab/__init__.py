"""Soup Lab: merging LoRA adapters so that one model has the skills of several."""
