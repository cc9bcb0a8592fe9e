"""The page of weights on the Hugging Face Hub: what they are for, how to use them, and what they were measured at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from i2sb.config import TrainConfig
from i2sb.errors import FileError
from i2sb.storage.exported import Exported
from i2sb.storage.hub import HubName


def write_card(exported: Exported, name: HubName, licence: str, data: str, folder: Path) -> str:
    """Return README.md of a repository, in Markdown with the front matter that the Hub reads.

    licence: as the Hub calls it, such as "apache-2.0". data: what the weights were trained on, in the user's words.
    folder: of the run, where scored folders of restored images may lie. Raises UserError naming a file of metrics that
    cannot be read.
    """
    config = exported.config
    front = {
        "license": licence,
        "library_name": "i2sb",
        "pipeline_tag": "image-to-image",
        "tags": ["image-restoration", "i2sb", *(["schrodinger-bridge"] if config.formulation == "bridge" else [])],
    }
    kind = "averaged" if exported.averaged else "raw"
    settings = "\n".join(f"| {title} | {value} |" for title, value in _describe(config).items())
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---
# {name.repository.rpartition("/")[2]}

Restores images degraded by `{config.corrupt}`: the {kind} weights after {exported.iteration} iterations of a
{config.formulation.replace("_", " ")}, trained with the code base i2sb, after Liu et al.,
[I²SB: Image-to-Image Schrödinger Bridge](https://arxiv.org/abs/2302.05872).

## Use

With i2sb installed, its extra `hub` included:

```python
from i2sb import load_model

model = load_model("{name}")
restored = model.restore(degraded)  # [B, {config.image_channels}, H, W] in [-1, 1]
```

```bash
i2sb-sample --ckpt {name} --nfe 10 --input photo.png --output restored
```

`model.safetensors` holds tensors, and the settings as text; nothing in it is run.

## Training

Training data: {data}

| setting | value |
|---|---|
{settings}

## Measured

{_report(folder)}
## Limits

It restores what it was trained on: images like those of its training data, degraded by `{config.corrupt}`. Of others it
may make anything, and what it fills in is likely at best: do not take it for what was there.
"""


def _describe(config: TrainConfig) -> dict[str, Any]:
    """Return what the table of settings tells; paths and names of the user's own are none of it."""
    told = {
        "degradation": config.corrupt,
        "noise in its measurement": config.degradation_noise,
        "network": config.network,
        "side of the training images": f"{config.image_size} pixels, crop {config.crop}",
        "channels": config.image_channels,
        "formulation": config.formulation,
        "steps": config.interval,
    }
    if config.formulation == "bridge":
        told |= {
            "strength of the diffusion, beta_max": config.beta_max,
            "without noise (OT-ODE)": "yes" if config.ot_ode else "no",
            "sees the degraded image at every step": "yes" if config.cond_x1 else "no",
            "begins at a regression": "yes" if config.x1_from else "no",
        }
    return told | {"batch size": config.batch_size, "learning rate": config.lr}


def _report(folder: Path) -> str:
    """Return a table for each scored folder of restored images."""
    parts = []
    for path in sorted(folder.glob("*/metrics.json")):
        try:
            scored = json.loads(path.read_text(encoding="utf-8"))
            made = scored["settings"]
            rows = [
                f"| {told['title']} | {_number(told['degraded'])} | {_number(told['restored'])} {told['unit']} |"
                for told in scored["metrics"].values()
            ]
            images = f"{scored['images']} images of {made['image_size']} pixels, degraded by `{made['corrupt']}`"
            title = images + (f", NFE {made['nfe']}:" if "nfe" in made else ":")
        except (ValueError, KeyError, TypeError):
            raise FileError(path, "is no file that compute_metrices.py wrote; move it away, or score again") from None
        parts.append("\n".join([title, "", "| metric | degraded | restored |", "|---|---|---|", *rows, ""]))
    return "\n".join(parts) or "No scores are published with it.\n"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
