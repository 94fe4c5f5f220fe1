"""What pretraining hides or changes: pure functions of a row's tokens and a seed."""
