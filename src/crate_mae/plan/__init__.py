"""A run before it starts: steps, memory, time, disk."""
