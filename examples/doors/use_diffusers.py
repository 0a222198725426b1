"""diffusers: a plain loop trains the UNet; of a pipeline each model is a row."""

import torch
from check import check
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from flopcallback import FlopCountAnalysis

BATCH, PIXELS, STEPS, SAMPLING = 2, 8, 3, 4
ATTENTIONS, TOKENS, CHANNELS = 4, 16, 16  # at half of the pixels: one down, one in the middle, two up


def unet():
    return UNet2DModel(
        sample_size=PIXELS, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def train(hook_of):
    model, scheduler = unet(), DDPMScheduler()
    optimizer = torch.optim.AdamW(model.parameters())
    with hook_of(model, optimizer):
        for _ in range(STEPS):
            images, noise = torch.randn(2, BATCH, 3, PIXELS, PIXELS)
            times = torch.randint(0, 1000, (BATCH,))
            noisy = scheduler.add_noise(images, noise, times)
            (model(noisy, times).sample - noise).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.parameters()


if __name__ == "__main__":
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model = unet()
        model(torch.randn(BATCH, 3, PIXELS, PIXELS), torch.zeros(BATCH, dtype=torch.long)).sample.sum().backward()
    # PyTorch's counter leaves out attention on a CPU: two products in the forward, and five in the backward.
    attention = ATTENTIONS * 7 * 2 * BATCH * TOKENS**2 * CHANNELS
    hook = check("diffusers", train, STEPS * (counter.get_total_flops() + attention))
    pipe = DDPMPipeline(unet(), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    flops = FlopCountAnalysis(pipe.__call__, (1, None, SAMPLING)).hardware_flops()
    assert flops["unet"] == flops[""] == SAMPLING * hook.profile.forward_flops // BATCH
