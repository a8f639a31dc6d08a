"""The perf suite."""
