"""Preferences and prompts: reading, splitting by prompt, tokenizing, and looking at them."""
