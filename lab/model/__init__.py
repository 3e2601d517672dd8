"""A cluster in memory for the model-based tests: objects as values, workers as steps that may stop anywhere, and nodes
that run the real node program on fake drivers. CONTRIBUTING.md says how to run the tests, and for longer."""
