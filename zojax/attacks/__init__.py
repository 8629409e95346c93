"""Attacks on models that answer and do not differentiate, to evaluate models you own."""
