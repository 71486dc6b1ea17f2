"""Trains masks, writes them as the pictures that go to the modulator, reads them back.

A free-space network 784–144–10: once plain, once among frames that rotate, shift and
scale at random. The lab gets 13 greyscale pictures of each; what 8 bits cost, and what
each misalignment costs, is printed.

    python examples/slm_frames.py
    python examples/slm_frames.py --quick
"""

import argparse
import json
import pathlib

import keras
from networks import free_space, random_misalignment, standardized

import keras_pnn as pnn

MISALIGNED = {
    "rotated by 1°": {"rotation": [1.0]},
    "1 pixel down": {"shift": [(1.0, 0.0)]},
    "5 % larger": {"scale": [0.05]},
    "0.5°, 0.5 px down": {"rotation": [0.5], "shift": [(0.5, 0.0)]},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="auto", help="auto, mnist, digits or a path")
    parser.add_argument("--epochs", type=int, default=None, help="default 6; digits 80")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small part of it all")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/slm_frames")
    )
    return parser.parse_args()


def compiled(model: keras.Model, steps: int = 1) -> keras.Model:
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.006, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=True,
    )
    return model


def train(robust: bool, data, epochs: int, args) -> keras.Model:
    """One epoch without misalignment comes first: among random ones, an untrained
    network finds no direction for a while."""
    batches = pnn.datasets.Batches(
        standardized(data.x_train), data.y_train, args.batch_size, seed=args.seed
    )
    model = free_space(args.seed)
    noise = random_misalignment()
    phases = [(model, 0, epochs)]
    if robust:
        among = pnn.SATModel(model, ascent=None, variation=noise, seed=args.seed)
        phases = [(model, 0, 1), (among, 1, epochs)]
    for trainer, first, last in phases:
        compiled(trainer, epochs * len(batches)).fit(
            batches,
            initial_epoch=first,
            epochs=last,
            shuffle=False,
            callbacks=[pnn.callbacks.BatchOrder(batches)],
        )
    return compiled(model)


def accuracy(model, x, y) -> float:
    return 100 * model.evaluate(x, y, verbose=0, return_dict=True)["accuracy"]


def measured(model, x, y, folder: pathlib.Path) -> dict:
    """Accuracy of the masks, of the masks that the pictures hold, and misaligned."""
    figures = {"masks": accuracy(model, x, y)}
    for layer in pnn.layers.physical_layers(model):
        layer.save_frames(folder)
        layer.load_frames(folder)
    figures["8-bit frames"] = accuracy(model, x, y)
    for name, values in MISALIGNED.items():
        with pnn.devices.grid(model, values)[0].installed(model):
            figures[name] = accuracy(model, x, y)
    return figures


def main() -> None:
    args = arguments()
    data = pnn.datasets.load(args.data)
    if args.quick:
        data = data.head(2000, 500)
    epochs = args.epochs or (2 if args.quick else 80 if data.name == "digits" else 6)
    results, pictures = {}, {}
    for name, robust in (("plain", False), ("robust", True)):
        print(f"\n{name}: {epochs} epochs on {len(data.x_train)} images of {data.name}")
        model = train(robust, data, epochs, args)
        folder = args.out / name
        results[name] = measured(model, standardized(data.x_test), data.y_test, folder)
        pictures[name] = model.get_layer("slm_1").frames()[0]
    rows = list(results["plain"])
    print(f"\n{'accuracy (%)':18}" + "".join(f"{n:>10}" for n in results))
    for row in rows:
        print(f"{row:18}" + "".join(f"{r[row]:10.2f}" for r in results.values()))

    from keras_pnn import plotting

    plotting.save(plotting.images(pictures), args.out / "frames.png")
    setting = {
        "data": data.name,
        "images": len(data.x_train),
        "batch_size": args.batch_size,
        "epochs": epochs,
        "seed": args.seed,
    }
    (args.out / "slm_frames.json").write_text(
        json.dumps({"setting": setting, "results": results}, indent=1), "utf-8"
    )
    print(f"\nFrames, figures and a picture are in {args.out}/")


if __name__ == "__main__":
    main()
