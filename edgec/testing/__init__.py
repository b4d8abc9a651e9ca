"""Strategies and oracles for those who add ops, rules and kernels."""
