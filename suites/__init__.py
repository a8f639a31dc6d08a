"""The product's suites: every case of a case file, measured and judged."""
