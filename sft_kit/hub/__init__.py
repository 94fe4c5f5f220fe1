"""The Hub: what goes there, how it gets there whole, and how it comes back."""
