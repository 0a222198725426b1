"""chemprop: molecules; the predictor is called by `train_step`, and its metrics by the validation alone."""

from check import linear
from check_callback import QUIET, check_callback
from chemprop import data, featurizers, models, nn
from lightning.pytorch import Trainer

HIDDEN, BATCH, EPOCHS = 16, 6, 4
SMILES = ["C" * length + tail for length in range(1, 9) for tail in ("O", "N", "C(=O)O")]
TRAINED = 18  # of them
LAYERS = 3  # of messages


def dataset(smiles):
    points = [data.MoleculeDatapoint.from_smi(each, [float(len(each))]) for each in smiles]
    return data.MoleculeDataset(points, featurizers.SimpleMoleculeMolGraphFeaturizer())


def train(callbacks):
    molecules = dataset(SMILES[:TRAINED])
    molecules.normalize_targets()
    head, metrics = nn.RegressionFFN(input_dim=HIDDEN, hidden_dim=HIDDEN), [nn.metrics.RMSE(), nn.metrics.MAE()]
    model = models.MPNN(nn.BondMessagePassing(d_h=HIDDEN, depth=LAYERS), nn.MeanAggregation(), head, True, metrics)
    trainer = Trainer(max_epochs=EPOCHS, accelerator="cpu", enable_checkpointing=False, callbacks=callbacks, **QUIET)
    batches, others = data.build_dataloader(molecules, BATCH, seed=0), data.build_dataloader(dataset(SMILES[TRAINED:]))
    trainer.fit(model, batches, others)
    return model.parameters()


def flops_of_an_epoch():
    graphs = [point.mol for point in dataset(SMILES[:TRAINED]).data]
    atoms, bonds = (
        sum(map(count, graphs)) for count in (lambda mol: mol.GetNumAtoms(), lambda mol: 2 * mol.GetNumBonds())
    )
    atom, bond = featurizers.SimpleMoleculeMolGraphFeaturizer().shape
    messages = linear(bonds, atom + bond, HIDDEN, *[HIDDEN] * (LAYERS - 1))[1]
    of_atoms = 3 * 2 * atoms * (atom + HIDDEN) * HIDDEN
    return messages + of_atoms + 3 * linear(TRAINED, HIDDEN, HIDDEN, 1)[0]


if __name__ == "__main__":
    samples = {"batch_size_fn": lambda batch: len(batch.bmg)}
    profile, numbers = check_callback("chemprop", train, EPOCHS * flops_of_an_epoch(), **samples)
    assert numbers["compute/samples_total"] == EPOCHS * TRAINED
    rows = {row.path: row for row in profile.modules}
    assert rows["predictor"].forward_ms >= rows["predictor.ffn"].forward_ms
    assert not any(path.startswith("metrics") for path in rows)
