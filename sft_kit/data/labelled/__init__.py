"""Labelled texts for classification: reading, splitting, looking, tokenizing."""
