"""The memory suite."""
