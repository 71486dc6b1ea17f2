"""Turn the result of a robustness study into text, tables, figures and HTML."""
