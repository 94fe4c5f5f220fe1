"""Rows to labelled token ids."""
