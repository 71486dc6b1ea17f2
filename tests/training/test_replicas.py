"""Trainers on several replicas equal one device, or refuse.

In one process of its own, where there are two devices; starting it takes long.
"""

import numpy as np
import pytest
from models import assert_same, result_on_two_devices

SCRIPT = """
    def trained(model, optimizer, data, epochs, **arguments):
        sat = pnn.SATModel(model, **arguments)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # On one device without a graph, which takes longer to make than the steps.
        sat.compile(optimizer, loss, run_eagerly=not tf.distribute.has_strategy())
        return sat, sat.fit(data, epochs=epochs, verbose=0).history

    def noisy(data):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,))
        bank = pnn.layers.MRRBank(3, kernel_regularizer="l2", name="bank")
        model = keras.Model(inputs, bank(keras.layers.Dense(4)(inputs)))
        radius = np.zeros((4, 3))
        radius[0, :2] = 0.05
        return trained(
            model, keras.optimizers.Adam(0.01), data, 1,
            rho=0.3, perturb="all", clean_fraction=0.25,
            variation=pnn.Variation(temperature=0.05), adversarial={
                "temperature": pnn.Autodiff(0.5, sample_radius=True),
                "resonance_shift": pnn.FiniteDifference(radius, 0.1, "forward")})

    def ascending(ascent, data):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,))
        model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
        moved = {"perturb": "all"} if ascent.moves else {}
        sgd = keras.optimizers.SGD(0.1)
        sat, logs = trained(model, sgd, data, 2, ascent=ascent, **moved)
        states = [s for n, s in sat.ascent.states().items() if n != "rho"]
        return logs, [np.array(v).tolist() for v in [*model.variables, *states]]

    together = {
        "gsam": lambda: pnn.GSAM(0.3),
        "friendlysam": lambda: pnn.FriendlySAM(0.3, decay=0.5),
        "mesa": lambda: pnn.MESA(3.0, decay=0.5, start=0, temperature=1.0),
        "esam": lambda: pnn.ESAM(0.3, beta=0.5, gamma=1)}
    batches = pnn.datasets.Batches(x, y, batch_size=8)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    found = {name: [ascending(make(), batches)] for name, make in together.items()}
    one, logs = noisy(data)
    chips = pnn.Variation(resonance_shift=0.1).sample(one, 2)

    def measured():
        found = pnn.evaluate_devices(one, x, y, chips, verbose=0)["loss"]
        losses = pnn.robustness.worst_device(
            one, x, y, {"temperature": 0.5}, steps=1, restarts=1)[1]
        return [*found.tolist(), *losses[0].tolist()]

    measurements = [measured()]
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    refused = {}
    with strategy.scope():
        for name, make in together.items():
            found[name].append(ascending(make(), batches))
        sat, two_logs = noisy(data)
        for kind in (pnn.SAF, pnn.LookSAM, pnn.ESAM):
            try:
                ascending(kind(), batches)
            except ValueError as error:
                refused[kind.__name__] = str(error)
        try:
            pat = pnn.PATModel(one.model, device=pnn.HardwareDevice())
            pat.compile("sgd", "mse")
        except ValueError as error:
            refused["bench"] = str(error)
        measurements.append(measured())
    copies = [[v.numpy() for v in strategy.experimental_local_results(b.value)]
              for b in sat.model.variables]
    assert all(len(c) == 2 for c in copies)
    single = [v.numpy() for v in one.model.variables]
    largest = lambda pairs: max(float(np.max(np.abs(a - b))) for a, b in pairs)
    noise = {
        "spread": largest(copies), "logs": [logs, two_logs],
        "difference": largest((a, c[0]) for a, c in zip(single, copies))}
    print("RESULT" + json.dumps([found, noise, refused, measurements]))
"""


def test_two_replicas_equal_one_device_or_are_refused():
    found, noise, refused, measurements = result_on_two_devices(SCRIPT)
    for (logs, one), (other_logs, other) in found.values():
        assert_same(map(np.array, one), map(np.array, other), atol=1e-6)
        np.testing.assert_allclose(
            logs["sharpness"], other_logs["sharpness"], rtol=1e-4, atol=1e-7
        )
    assert noise["spread"] == 0
    # Halves are added in another order; a difference over 0.1 is ten times as far off.
    assert noise["difference"] < 1e-5
    logs, two_logs = noise["logs"]
    for name in ("loss", "sharpness"):
        assert logs[name] == pytest.approx(two_logs[name], rel=1e-5, abs=1e-6)
    for kind in ("SAF", "LookSAM", "ESAM"):
        assert f"{kind} trains on one replica. Received: 2 replicas" in refused[kind]
    assert "Received: 2 replicas" in refused["bench"]
    outside, inside = measurements
    assert inside == pytest.approx(outside, rel=1e-5)
