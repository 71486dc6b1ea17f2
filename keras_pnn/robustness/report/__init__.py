"""Turn the result of a robustness study into text, tables, figures and HTML.

The way of a number, such as the mean accuracy over devices, to the page:

1. `robustness/model_study.py` measures the points of one model with a `DeviceEvaluator`
   and stores an array, one value per device, in `results.ModelRobustness.devices`.
2. `sections.py` takes its statistics (`ModelRobustness.summary`) and lays out the
   sections of the report as titles, explanations, tables and pictures; `formatting.py`
   formats the numbers and names.
3. `html.py` and `text.py` write these sections, as `RobustnessResult.save` and `print`
   ask for.
"""
