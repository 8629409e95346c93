"""Experiments: training runs and studies, each run as `python -m experiments.NAME`."""
