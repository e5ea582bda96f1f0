"""Per-layer benchmark of grouped convolution: problems, timing, peers, roofline, tables, plots.

``benchmarks/grouped_conv.py`` and ``python -m grouped_conv.bench`` are its command lines;
docs/benchmarking.md tells how it measures.
"""
