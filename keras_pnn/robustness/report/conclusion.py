"""Summarise the findings of a robustness study in words."""

import numpy as np

from keras_pnn.robustness.report.formatting import (
    ABSENT,
    Display,
    Section,
    having,
    interval,
    sensitivity_drops,
    specification,
)
from keras_pnn.robustness.statistics import margin


def conclusion(result) -> Section:
    """Returns the first section: a paragraph for each model, and a comparison."""
    text = [
        f"The specification is {specification(result)}.",
        *(_model(result, name) for name in result.models),
        *_comparison(result),
    ]
    return Section("conclusion", "Conclusion", "", text=tuple(text))


def _model(result, name: str) -> str:
    model, display = result.models[name], Display.of(result)

    def shown(value):
        return display.number(value, unit=True)

    nominal = model.nominal[result.metric]
    verb = "keeps" if margin(nominal, result.spec, result.mode) >= 0 else "breaks"
    found = [f"{name}: the design {verb} it, with {shown(nominal)}."]
    if kept := result.yield_of(name):
        summary = model.summary(result.metric)
        worst = summary["min" if result.mode == "max" else "max"]
        low, high = (100 * bound for bound in kept.interval)
        mean = shown(summary["mean"])
        if kept.n == 1:
            verb = "keeps" if kept.passed else "breaks"
            found.append(f"The one device {verb} it, with {mean}.")
        else:
            found.append(
                f"On {kept.n} devices the mean is {mean}, the worst {shown(worst)}; "
                f"{kept.passed} of {kept.n} keep it (yield {100 * kept.value:.1f} %, "
                f"95 % interval {low:.1f} … {high:.1f} %)."
            )
    held, narrow, broken = {}, [], []
    for scan in model.sweeps.values():
        axis = scan.axes[0]
        if axis.positions is None:
            continue
        span, _ = interval(result, scan)
        unit = f" {axis.unit}" if axis.unit else ""
        if span == ABSENT:
            broken.append(axis.words)
        elif span.startswith("less"):
            narrow.append(f"The tolerance to {axis.words} is {span}{unit}.")
        else:
            curve = "The mean over the devices" if scan.devices else "The design"
            held.setdefault(curve, []).append(f"{axis.words} {span}{unit}")
    found += [f"{curve} keeps it over {'; '.join(r)}." for curve, r in held.items()]
    found += narrow
    if broken:
        found.append(f"No tolerance was found to: {', '.join(broken)}.")
    found += _costliest(result, name, display)
    if model.worst is not None:
        worst = shown(model.worst.metrics[result.metric])
        found.append(f"The worst case that was found, within its radii, has {worst}.")
    return " ".join(found)


def _costliest(result, name: str, display: Display) -> list[str]:
    """Names the imperfection and the layer that cost most on their own."""
    part = result.models[name].sensitivity
    if part is None:
        return []
    drops = sensitivity_drops(result, name)
    if not (np.isfinite(drops).any() and np.nanmax(drops) > 0):
        return []
    layer, kind = np.unravel_index(np.nanargmax(drops), drops.shape)
    unit = " percentage points" if display.percent else ""
    return [
        f"Alone, {part.kinds[kind]} in layer '{part.layers[layer]}' costs most: "
        f"{display.number(drops[layer, kind])}{unit}."
    ]


def _comparison(result) -> list[str]:
    """Names the best model on the devices, and tells whether yields differ."""
    display = Display.of(result)
    devices = having(result, "devices")
    means = {
        name: float(values[result.metric].mean()) for name, values in devices.items()
    }
    means = {name: mean for name, mean in means.items() if np.isfinite(mean)}
    if len(means) < 2:
        return []
    best, second, *_ = sorted(means, key=means.get, reverse=result.mode == "max")
    if means[best] == means[second]:
        return ["On the devices, the best models have the same mean."]
    first, next_one = (display.number(means[n], unit=True) for n in (best, second))
    text = (
        f"On the devices, {best} has the best mean, {first}; next is {second} with "
        f"{next_one}."
    )
    (low, high), (low_2, high_2) = (
        result.yield_of(name).interval for name in (best, second)
    )
    if low <= high_2 and low_2 <= high:
        text += (
            " The 95 % intervals of their yields overlap: more devices would be needed "
            "to tell their yields apart."
        )
    return [text]
