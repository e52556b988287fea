"""Runs on a workstation: recordings and a recipe in, a verified bundle out.

recipe ─► data (windows ─► features) ─► splits ─► fit ─► export ─► calibrate ─► bundle ─► evaluate
"""
