"""Speed and accuracy, runnable by anyone: `python -m benchmarks.<name>`.

`kang`: cells of a cell type that was never seen stimulated, against trivial predictions and a
replicate of the experiment. `speed`: training and sampling, beside scvi-tools' own model.
"""
