"""The networks of the golden vectors, whose weights come from a formula."""

from __future__ import annotations

import torch

from helpers.golden import golden_json
from i2sb.unet import UNet


def formula_network(case: str) -> tuple[UNet, torch.Tensor]:
    """Build the golden case's network, its weights from the formula in golden/README's source, and its input."""
    settings = golden_json(f"unet_formula_{case}")
    height, width = settings.pop("hw")
    net = UNet(out_channels=3, **settings)
    with torch.no_grad():
        for i, (name, parameter) in enumerate(net.named_parameters()):
            values = torch.sin(0.7 * torch.arange(parameter.numel(), dtype=torch.float64) + i)
            if parameter.ndim > 1:
                values = values / parameter[0].numel() ** 0.5
            else:
                values = 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
            parameter.copy_(values.view_as(parameter))
    count = 2 * settings["in_channels"] * height * width
    x = torch.sin(0.37 * torch.arange(count, dtype=torch.float64) + 1).float()
    return net, x.view(2, settings["in_channels"], height, width)
