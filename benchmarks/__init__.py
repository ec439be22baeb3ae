"""Models, measurements and the commands behind every number in `docs/benchmarks.md`."""
