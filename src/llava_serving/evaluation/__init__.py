"""Measures how good a model's answers are.

It asks an endpoint or a model folder, keeps every answer, and computes the figures. It knows no request form but the
service's own, and no kernel.
"""
