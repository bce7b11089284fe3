"""Draw the schematics of the model pages: `python docs/_scripts/model_pictures.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FOLDER = Path(__file__).resolve().parents[1] / "_static"
# Colours that readers with colour vision deficiency can tell apart (Okabe and Ito).
GREY, BLUE, ORANGE, GREEN = "#8A8A8A", "#0072B2", "#D55E00", "#009E73"
INK = "#222222"


def main():
    """Draw one picture for each model."""
    mpl.use("Agg")
    for draw in (draw_diffusion, draw_flow, draw_hybrid, draw_causal):
        figure = draw()
        name = draw.__name__.removeprefix("draw_")
        model = {
            "diffusion": "perturbdiffusion",
            "flow": "perturbflow",
            "hybrid": "hybridresidualmodel",
            "causal": "causalperturbvae",
        }[name]
        figure.savefig(FOLDER / f"model_{model}.png", dpi=130, facecolor="white")
        plt.close(figure)


def canvas(width=10.0, height=3.6):
    """Return a figure with one empty axis whose units are inches."""
    figure, ax = plt.subplots(figsize=(width, height))
    figure.subplots_adjust(0, 0, 1, 1)
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return figure, ax


def box(ax, centre, text, *, colour=GREY, size=(1.7, 0.8), fill=True):
    """Draw a rounded box with text around a centre."""
    (x, y), (w, h) = centre, size
    ax.add_patch(
        FancyBboxPatch(
            (x - w / 2, y - h / 2),
            w,
            h,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor=mpl.colors.to_rgba(colour, 0.13 if fill else 0.0),
            edgecolor=colour,
            linewidth=1.6,
        )
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=10.5, color=INK, linespacing=1.35)


def arrow(ax, start, end, *, colour=INK, bend=0.0, text="", shift=(0.0, 0.17)):
    """Draw an arrow with a label at its middle."""
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=14,
            linewidth=1.5,
            color=colour,
            shrinkA=0,
            shrinkB=0,
            connectionstyle=f"arc3,rad={bend}",
        )
    )
    if text:
        x, y = (np.add(start, end) / 2) + shift
        ax.text(x, y, text, ha="center", va="center", fontsize=9.5, color=colour)


def note(ax, x, y, text, *, colour=GREY, size=9.5):
    """Write a line of text."""
    ax.text(x, y, text, ha="center", va="center", fontsize=size, color=colour, linespacing=1.3)


def draw_diffusion():
    """A control cell, encoded, displaced and decoded."""
    figure, ax = canvas(10, 3.9)
    box(ax, (1.0, 2.6), "control cell\n(counts)", colour=GREY)
    box(ax, (3.15, 2.6), "latent of the\ncontrol  $r$", colour=GREY)
    box(
        ax,
        (6.55, 2.6),
        "latent of the response\n$z = r + a(c) + s\\,y$",
        colour=BLUE,
        size=(2.3, 0.8),
    )
    box(ax, (9.05, 2.6), "sampled cell\n(counts)", colour=BLUE, size=(1.6, 0.8))
    arrow(ax, (1.87, 2.6), (2.28, 2.6))
    note(ax, 2.07, 3.2, "encoder")
    arrow(ax, (4.02, 2.6), (5.38, 2.6))
    arrow(ax, (7.72, 2.6), (8.23, 2.6))
    note(ax, 7.98, 3.2, "decoder")
    box(ax, (1.0, 0.9), "condition $c$\n(genes, dose, time)", colour=ORANGE, size=(1.8, 0.8))
    box(
        ax,
        (4.0, 0.9),
        "additive part  $a(c)$\none vector per component",
        colour=ORANGE,
        size=(2.5, 0.8),
    )
    box(ax, (7.4, 0.9), "remainder  $y$\ndiffusion: noise to $y$", colour=GREEN, size=(2.3, 0.8))
    arrow(ax, (1.92, 0.9), (2.73, 0.9), colour=ORANGE)
    arrow(ax, (4.4, 1.32), (5.9, 2.18), colour=ORANGE)
    arrow(ax, (7.2, 1.32), (6.85, 2.18), colour=GREEN)
    arrow(ax, (1.0, 0.48), (7.4, 0.48), colour=GREEN, bend=0.06)
    head = "stage one: a count autoencoder, trained first and then frozen"
    note(ax, 5.0, 3.6, head, colour=INK, size=10)
    arrow(ax, (3.6, 2.18), (6.23, 1.1), colour=GREY)
    note(ax, 8.6, 1.6, "drawn anew\nfor each cell", colour=GREEN)
    return figure


def draw_flow():
    """Paths from control cells to responses, in a latent of two dimensions."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.9))
    figure.subplots_adjust(0.02, 0.06, 0.98, 0.88, wspace=0.08)
    rng = np.random.default_rng(2)
    times = np.linspace(0, 1, 60)[:, None]
    ends = np.array([6.0, 1.2])

    start = rng.normal(scale=(0.55, 0.75), size=(26, 2))
    reach = ends + 0.6 * start + 0.12 * np.sin(2 * start[:, ::-1])
    noise = rng.normal(scale=(0.55, 0.75), size=(26, 2))
    spread = ends + noise @ np.array([[0.9, 0.25], [-0.2, 0.75]])
    panels = (
        (axes[0], start, reach, "control cells", GREY, 'source="control": one path for each cell'),
        (axes[1], noise, spread, "noise", GREEN, 'source="noise": a density of cells'),
    )
    for ax, first, last, name, colour, title in panels:
        for a, b in zip(first, last, strict=True):
            arc = np.column_stack([np.zeros_like(times), 0.9 * np.sin(np.pi * times)])
            path = (1 - times) * a + times * b + arc * (0.6 if ax is axes[0] else 0.3)
            ax.plot(*path.T, color=GREY, alpha=0.45, linewidth=0.9, zorder=1)
        ax.scatter(*first.T, s=30, color=colour, edgecolor="white", zorder=2)
        ax.scatter(*last.T, s=30, color=BLUE, edgecolor="white", zorder=2)
        ax.set(xlim=(-2, 8.2), ylim=(-3.3, 4.4), xticks=[], yticks=[])
        ax.spines[:].set_color("#CCCCCC")
        ax.set_title(title, fontsize=10.5, color=INK, family="DejaVu Sans")
        note(ax, 0.0, -2.75, f"{name},  $t = 0$", colour=colour, size=10)
        note(ax, 6.0, -2.75, "perturbed cells,  $t = 1$", colour=BLUE, size=10)
        ax.annotate("", (4.3, 3.5), (1.5, 3.5), arrowprops={"arrowstyle": "-|>", "color": INK})
        ax.annotate("", (1.5, -2.05), (4.3, -2.05), arrowprops={"arrowstyle": "-|>", "color": INK})
    note(axes[0], 2.9, 3.95, "transport, trajectory", colour=INK)
    note(axes[0], 2.9, -1.65, "invert", colour=INK)
    note(axes[1], 2.9, 3.95, "sample", colour=INK)
    note(axes[1], 2.9, -1.65, "log density", colour=INK)
    return figure


def draw_hybrid():
    """The stack gives the mean, the generator the cells, a factor per gene joins them."""
    figure, ax = canvas(10, 3.9)
    box(ax, (1.2, 2.95), "condition means\n(one row each)", colour=ORANGE, size=(1.9, 0.8))
    box(ax, (1.2, 0.95), "single cells", colour=GREY, size=(1.9, 0.8))
    box(
        ax,
        (4.0, 2.95),
        "stack\nregression, additive, ...\nweights from left-out folds",
        colour=ORANGE,
        size=(2.5, 1.1),
    )
    box(ax, (4.0, 0.95), "generator\ndiffusion or flow", colour=BLUE, size=(2.5, 0.8))
    arrow(ax, (2.17, 2.95), (2.73, 2.95))
    arrow(ax, (2.17, 0.95), (2.73, 0.95))
    arrow(ax, (4.0, 1.37), (4.0, 2.38), colour=BLUE)
    note(ax, 4.72, 1.88, "its mean is\na member", colour=BLUE)

    x = np.linspace(5.75, 7.75, 200)
    curve = np.exp(-0.5 * ((x - 6.9) / 0.3) ** 2)
    ax.plot([5.75, 7.75], [2.55, 2.55], color=INK, linewidth=0.8)
    ax.errorbar(
        [6.9], [2.95], xerr=[[0.55], [0.55]], fmt="o", color=ORANGE, capsize=5, markersize=7
    )
    note(ax, 6.75, 3.4, "mean effect, interval", colour=ORANGE)
    ax.plot([5.75, 7.75], [0.55, 0.55], color=INK, linewidth=0.8)
    before = np.exp(-0.5 * ((x - 6.45) / 0.3) ** 2)
    ax.fill_between(x, 0.55, 0.55 + 0.75 * before, color=BLUE, alpha=0.18, linewidth=0)
    ax.plot(x, 0.55 + 0.75 * before, color=BLUE, linewidth=1.4, linestyle="--")
    note(ax, 6.3, 1.55, "generated cells", colour=BLUE)
    arrow(ax, (5.28, 2.95), (5.7, 2.95))
    arrow(ax, (5.28, 0.95), (5.7, 0.95))

    ax.plot([8.25, 9.75], [1.55, 1.55], color=INK, linewidth=0.8)
    last = np.linspace(8.25, 9.75, 200)
    curve = np.exp(-0.5 * ((last - 9.1) / 0.25) ** 2)
    ax.fill_between(last, 1.55, 1.55 + 0.75 * curve, color=GREEN, alpha=0.25, linewidth=0)
    ax.plot(last, 1.55 + 0.75 * curve, color=GREEN, linewidth=1.6)
    ax.plot([9.1, 9.1], [1.55, 2.3], color=ORANGE, linewidth=1.2, linestyle=":")
    note(ax, 9.0, 1.2, "one factor per gene:\ncells with the mean\nof the stack", colour=GREEN)
    arrow(ax, (7.75, 2.75), (8.3, 2.3), colour=ORANGE)
    arrow(ax, (7.75, 0.95), (8.2, 1.55), colour=BLUE)
    return figure


def draw_causal():
    """Latents of three groups; the perturbation shifts one."""
    figure, ax = canvas(10, 3.9)
    box(ax, (0.95, 1.95), "cell\n(counts)", colour=GREY, size=(1.4, 0.8))
    groups = (
        (3.15, "identity\n$z_i$", GREY, "cell type, donor, tissue"),
        (1.95, "state\n$z_s$", ORANGE, "perturbation, dose, time"),
        (0.75, "technical\n$z_t$", GREEN, "batch"),
    )
    for y, text, colour, prior in groups:
        box(ax, (3.4, y), text, colour=colour, size=(1.5, 0.8))
        arrow(ax, (1.67, 1.95), (2.63, y), colour=INK)
        note(ax, 3.4, y - 0.54, f"prior: {prior}", colour=INK, size=8.5)
    note(ax, 1.75, 2.95, "encoder")
    box(ax, (6.15, 1.95), "shifted state\n$z_s + s(c, z_i)$", colour=ORANGE, size=(1.9, 0.8))
    arrow(ax, (4.17, 1.95), (5.18, 1.95), colour=ORANGE, text="operator", shift=(0, 0.2))
    arrow(ax, (4.17, 3.05), (5.6, 2.37), colour=GREY, text="modifies", shift=(0.35, 0.2))
    box(ax, (9.05, 1.95), "cell under the\ncondition (counts)", colour=BLUE, size=(1.7, 0.8))
    arrow(ax, (7.12, 1.95), (8.18, 1.95), colour=ORANGE)
    arrow(ax, (4.17, 3.25), (8.6, 2.38), colour=GREY, bend=-0.18)
    arrow(ax, (4.17, 0.7), (8.6, 1.53), colour=GREEN, bend=0.18)
    note(ax, 7.62, 1.6, "decoder")
    return figure


if __name__ == "__main__":
    main()
