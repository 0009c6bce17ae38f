"""What is learned about the model: studies, statistics, cards and benchmarks."""
