"""Turn the result of a robustness study into text, tables, figures and HTML.

How a number, such as the mean accuracy over devices, gets onto the page:

1. `robustness_report` prepares a `Study`, whose `ModelStudy`
   (`robustness/model_study.py`) measures the points of one model with a
   `DeviceEvaluator`. `gathered` (`robustness/points.py`) puts them into arrays, such as
   `ModelRobustness.devices`.
2. `sections.py` takes their statistics (`ModelRobustness.summary` in
   `robustness/results.py`) and lays out the sections of the report: the first is that
   of `conclusion.py`, those of sweeps are in `scan_sections.py`. `formatting.py`
   formats the numbers and names.
3. `RobustnessResult.save` writes the page that `html.py` makes of these sections, with
   the pictures of `figures.py` and tables by `_display.Table.html`; `text.py` returns
   them as text.
"""
