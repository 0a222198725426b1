"""scvi-tools: a variational autoencoder of cells; the callback is an argument of `train`."""

import anndata
import numpy as np
import pandas as pd
import scvi
from check_callback import check_callback

GENES, HIDDEN, LATENT, BATCHES, CELLS, SIZE, EPOCHS = 20, 16, 4, 2, 200, 40, 3
TRAINED = CELLS * 8 // 10


def train(callbacks):
    scvi.settings.seed, scvi.settings.verbosity = 0, 40
    counts = np.random.default_rng(0).poisson(3.0, (CELLS, GENES)).astype(np.float32)
    labels = [f"batch {cell % BATCHES}" for cell in range(CELLS)]
    cells = anndata.AnnData(counts, obs=pd.DataFrame({"batch": labels}, index=[f"cell {n}" for n in range(CELLS)]))
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, n_hidden=HIDDEN, n_latent=LATENT)
    options = {"max_epochs": EPOCHS, "batch_size": SIZE, "train_size": TRAINED / CELLS, "check_val_every_n_epoch": 1}
    model.train(accelerator="cpu", enable_progress_bar=False, callbacks=callbacks, **options)
    return model.module.parameters()


if __name__ == "__main__":
    first = GENES * HIDDEN
    forward = first + 2 * HIDDEN * LATENT + (LATENT + BATCHES) * HIDDEN + 2 * HIDDEN * GENES
    _, numbers = check_callback("scvi-tools", train, EPOCHS * TRAINED * 2 * (3 * forward - first))
    assert numbers["compute/samples_total"] == EPOCHS * TRAINED
