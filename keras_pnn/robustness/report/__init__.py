"""Robustness results as text, tables, figures and HTML."""
