"""monai: crops of volumes; the metric of the validation is no part of the training."""

import torch
from check_callback import QUIET, check_callback
from lightning.pytorch import LightningModule, Trainer
from monai.data import CacheDataset, DataLoader
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import Compose, RandCropByPosNegLabeld, RandFlipd

VOLUMES, CROPS, BATCH, EPOCHS, SIDE = 4, 2, 2, 3, 16


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1)
        self.loss, self.dice = DiceCELoss(to_onehot_y=True, softmax=True), DiceMetric(include_background=False)

    def training_step(self, batch, _):
        return self.loss(self.net(batch["image"]), batch["label"])

    def validation_step(self, batch, _):
        scores = sliding_window_inference(batch["image"], (SIDE, SIDE, SIDE), 2, self.net)
        self.dice(scores.argmax(1, keepdim=True), batch["label"])

    def on_validation_epoch_end(self):
        self.log("val/dice", self.dice.aggregate().item())
        self.dice.reset()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def train(callbacks):
    volumes = [
        {"image": torch.randn(1, 24, 24, 24), "label": torch.randint(2, (1, 24, 24, 24))} for _ in range(VOLUMES)
    ]
    keys = ["image", "label"]
    crops = Compose(
        [RandCropByPosNegLabeld(keys, "label", (SIDE, SIDE, SIDE), num_samples=CROPS), RandFlipd(keys, 0.5)]
    )
    crops.set_random_state(seed=0)
    batches = DataLoader(CacheDataset(volumes, crops, progress=False), batch_size=BATCH, shuffle=True)
    net = Net()
    trainer = Trainer(max_epochs=EPOCHS, accelerator="cpu", enable_checkpointing=False, callbacks=callbacks, **QUIET)
    trainer.fit(net, batches, DataLoader(CacheDataset(volumes[:1], progress=False), batch_size=1))
    return net.parameters()


if __name__ == "__main__":
    _, numbers = check_callback("monai", train)
    assert numbers["compute/samples_total"] == EPOCHS * VOLUMES * CROPS
