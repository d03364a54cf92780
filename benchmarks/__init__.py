"""Figures as ratios taken in one run; README.md says how to read them."""
