"""What a run will take, measured before it is started: tokens, memory, time, disk."""
