"""Performance benchmarks: ratios measured side by side, never tests."""
