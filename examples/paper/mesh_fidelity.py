"""Programs a mesh with a random unitary, makes it imperfect, and corrects it.

Chips differ from the design in the angles of their splitters and in their phases. The
plot shows the fidelity of such chips to the target matrix, with the closed form for
random errors, and the fidelity after the phases are corrected for the known errors of
each chip.

    python examples/paper/mesh_fidelity.py
    python examples/paper/mesh_fidelity.py --modes 64 --chips 50
"""

import argparse
import json
import pathlib

import numpy as np

import keras_pnn as pnn
from keras_pnn.physics import decompose, mesh

SIGMAS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", type=int, default=32)
    parser.add_argument("--chips", type=int, default=20)
    parser.add_argument("--arrangement", default="clements")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few modes and chips")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/mzi_mesh")
    )
    return parser.parse_args()


def fidelity(wanted: np.ndarray, matrix: np.ndarray) -> float:
    """Returns |tr W†M|² / N², 1 if the matrices agree up to a common phase."""
    return float(np.abs(np.vdot(wanted, matrix)) ** 2 / len(wanted) ** 2)


def law(modes: int, sigma) -> np.ndarray:
    """Returns the mean fidelity for a common spread of splitter angles and phases."""
    k = (modes - 1) * (2 + 0.75) * sigma**2
    return np.exp(-(k - sigma**2 * (modes - 1) / (2 * modes)))


def main() -> None:
    args = arguments()
    if args.quick:
        args.modes, args.chips = 8, 3
    args.out.mkdir(parents=True, exist_ok=True)
    phases = decompose.haar_phases(args.modes, args.seed, args.arrangement)
    wanted = mesh.transfer_matrix(
        phases.theta, phases.phi, phases.gamma, args.arrangement
    ).numpy()
    layer = pnn.layers.MZIMesh(args.modes, args.arrangement, dtype="float64")
    layer.build((None, args.modes))
    layer.program(wanted)
    distance = np.abs(layer.transfer_matrix() - wanted).max()
    print(f"{args.modes} modes: decomposed and rebuilt, off by {distance:.1e} at most")
    print(f"{'σ (rad)':>8} {'fidelity':>9} {'law':>7} {'corrected':>10} {'left':>8}")
    rows = []
    for sigma in SIGMAS:
        variation = pnn.Variation(
            splitter_error=sigma, theta_error=sigma, phi_error=sigma
        )
        before, after, left = [], [], []
        for chip in variation.sample(layer, args.chips, seed=args.seed):
            with chip.installed(layer):
                layer.program(wanted)
                before.append(fidelity(wanted, layer.transfer_matrix().numpy()))
                left.append(layer.correct(wanted))
                after.append(fidelity(wanted, layer.transfer_matrix().numpy()))
        rows.append([sigma, before, after, left])
        print(
            f"{sigma:8.2f} {np.mean(before):9.4f} {law(args.modes, sigma):7.4f} "
            f"{np.mean(after):10.4f} {np.mean(left):8.1e}",
            flush=True,
        )
    picture(args, rows)
    names = ("sigma", "fidelity", "corrected_fidelity", "distance_left")
    figures = [dict(zip(names, row, strict=True)) for row in rows]
    setting = {"modes": args.modes, "chips": args.chips, "seed": args.seed}
    (args.out / "mzi_mesh.json").write_text(
        json.dumps({"setting": setting, "rows": figures}, indent=1), "utf-8"
    )
    print(f"Plot and figures are in {args.out}/")


def picture(args, rows) -> None:
    from keras_pnn import plotting

    sigma, before, after, _ = (list(column) for column in zip(*rows, strict=True))
    curves = {
        "programmed as designed": np.transpose(before),
        "corrected for the known errors": np.transpose(after),
    }
    ax = plotting.new_figure().subplots()
    fine = np.linspace(0, max(sigma), 200)
    ax.plot(
        fine, law(args.modes, fine), "--", color="0.3", zorder=3, label="closed form"
    )
    axis = "spread of splitters and phases (rad)"
    plotting.sweep(sigma, curves, axis, "fidelity", ax)
    ax.set_ylim(0, 1.03)
    plotting.save(ax, args.out / "fidelity.png")


if __name__ == "__main__":
    main()
