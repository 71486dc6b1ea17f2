"""Turn the result of a robustness study into text, tables, figures and HTML.

The way of a number, such as the mean accuracy over devices, to the page:

1. `model_study.py` measures the points of one model with a `DeviceEvaluator`;
   `points.gathered` puts them into arrays, such as `ModelRobustness.devices`.
2. `sections.py` takes its statistics (`ModelRobustness.summary`) and lays out the
   sections of the report, those of sweeps in `scan_sections.py`; `formatting.py`
   formats the numbers and names.
3. `html.py`, with the pictures of `figures.py`, and `text.py` write these sections.
"""
