"""Make the pictures and the numbers of `docs/guides.md` by running the page's own examples.

    python docs/make_guides.py

The first code block of the page sets the problem; each later one leaves its samples in `x` and is drawn over the density.
A block may set `target`, a function of points `[n, 2]` whose contours are drawn as well.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"^!\[[^\]]*\]\(images/(guides-[a-z-]+\.png)\)", re.MULTILINE)


def blocks(text: str) -> list[tuple[str, str | None]]:
    """Each code block and the name of the picture that follows it before the next block."""
    found = list(BLOCK.finditer(text))
    ends = [m.start() for m in found[1:]] + [len(text)]
    out = []
    for match, end in zip(found, ends, strict=True):
        picture = PICTURE.search(text, match.end(), end)
        out.append((match.group(1), picture.group(1) if picture else None))
    return out


def contours(ax: Any, density: Any, **style: Any) -> None:
    line = torch.linspace(-3.0, 3.2, 120, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    values = density(points).reshape(120, 120).T
    levels = (values.max() * torch.tensor([0.05, 0.2, 0.5, 0.8])).tolist()
    ax.contour(line.numpy(), line.numpy(), values.numpy(), levels=levels, **style)


def draw(space: dict[str, Any], path: Path) -> None:
    fig, ax = plt.subplots(figsize=(3.2, 3.2), dpi=90)
    x = space["x"]
    if "data" in space:
        contours(ax, lambda p: space["data"].log_density(p).exp(), colors="0.6", linewidths=0.8)
    if space.get("target") is not None:
        contours(ax, space["target"], colors="tab:red", linewidths=1.0)
    weight = space.get("weights")
    if weight is not None:  # weighted particles: draw some of them in proportion
        pick = torch.multinomial(weight, 700, replacement=True, generator=torch.Generator().manual_seed(0))
        x = x[pick]
    ax.plot(x[:700, 0].numpy(), x[:700, 1].numpy(), ".", ms=2, color="tab:blue", alpha=0.6)
    ax.set(xlim=(-3, 3.2), ylim=(-3, 3.2), aspect="equal")
    ax.tick_params(labelsize=7)
    fig.tight_layout(pad=0.3)
    fig.savefig(path)
    plt.close(fig)


def main() -> None:
    space: dict[str, Any] = {}
    (HERE / "images").mkdir(exist_ok=True)
    for code, picture in blocks((HERE / "guides.md").read_text(encoding="utf-8")):
        space |= {"target": None, "weights": None}
        exec(compile(code, picture or "guides.md", "exec"), space)
        if picture:
            path = HERE / "images" / picture
            draw(space, path)
            print(f"{picture}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
