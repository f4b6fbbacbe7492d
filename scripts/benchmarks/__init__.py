"""What things cost: `python -m scripts.benchmarks TOPIC`, a module each."""
