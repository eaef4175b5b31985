"""Whatever runs: the command line, sweeps, results, papers, benchmarks."""
