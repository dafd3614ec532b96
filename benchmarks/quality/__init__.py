"""What training brings, as one table: ``python -m benchmarks.quality``; see benchmarks/README.md."""
