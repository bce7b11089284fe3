"""Speed and accuracy, runnable by anyone: `python -m benchmarks.<name>`.

`leaderboard`: every method on every task. `reference_points`: two of its methods beside figures
measured elsewhere. `kang`: cells of a cell type that was never seen stimulated, in detail. `speed`:
training and sampling, beside scvi-tools' own model. `metrics`: how long the judge takes.
"""
