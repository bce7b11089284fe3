"""Paragraphs that docstrings of models share, filled in by docrep as `%(name)s`."""

from __future__ import annotations

from docrep import DocstringProcessor

docs = DocstringProcessor(
    init_adata="""adata
    A screen registered with :meth:`setup_anndata`.""",
    init_stage_one="""n_latent, n_hidden, n_layers
    Latent dimension, width and encoder layers of stage one.
dispersion
    One per `"gene"`, `"gene-batch"` or `"gene-cell"`.""",
    init_decoder="""decoder
    `"mlp"`, or `"linear"` for loadings that can be read, see :meth:`get_loadings`.""",
    init_rest="""features
    What is known of perturbations, for those that the screen does not hold.
seed
    Seed of the initial weights.
registry
    Used when loading without data.""",
    request="""conditions
    Names (`["A", "A+B"]`), or a table with one row a population to draw: perturbation, and
    where registered dose, time, context columns, batch. Columns that are missing mean "the
    reference's".
reference
    Control cells to start from: new donors, new cell types, one cell or many; never trained
    on. None takes the training controls of the context asked for.
n_samples
    Cells a row; None draws one for each reference cell. A column `n_cells` of the table says it
    for each row instead.
seed
    Seed of all draws; None differs from call to call.""",
    sampler="""sampler
    Method, or a :class:`~scvi_perturb.generative.SamplerConfig` with the number of evaluations
    and the guidance scale.""",
    cells="""adata
    Data with the genes and columns of training; None for the data of training.
indices
    Cells, in the order wanted; None for all.""",
    train="""max_epochs
    Epochs at most, where there are two stages of the first; None chooses by the number of
    cells. Training stops before when the validation loss no longer falls, with the best weights.
split
    Which cells train, validate and are held out, see :func:`scvi_perturb.data.split`; None
    validates on a tenth of the cells.""",
    train_rest="""batch_size
    Cells a batch, where there are two stages in the first.
seed
    Seed of order, noise and dropout.
checkpoint_dir
    Where the state of the run is written; calling `train` again with the same folder after a
    kill goes on where it stopped, and after the end only reads the result. A folder of another
    run is refused.
config
    Optimisation and stopping.
**trainer_kwargs
    For scvi-tools' Trainer: `accelerator`, `devices`, `strategy`, `enable_progress_bar`,
    `precision`, ...""",
    train_raises="""SchemaError
    When the model has no data; when the training cells hold no control, in all or in one
    context, too few treated cells, cells without counts, or library sizes below the counts;
    when `checkpoint_dir` holds another run.""",
    raises_request="""NotTrainedError
    Before training.
UnknownPerturbationError
    For a perturbation neither trained on nor with features.
SchemaError
    For a request or a reference that does not fit.""",
    raises_cells="""NotTrainedError
    Before training.
UnknownPerturbationError
    For cells with a perturbation neither trained on nor with features.""",
)
