"""The benchmark of whole models; ``python benchmarks/resnext.py`` runs it."""
