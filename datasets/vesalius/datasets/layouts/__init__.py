"""Folder layouts: each finds subjects in a raw tree and reads no voxel.

A layout is a class without arguments (see :class:`vesalius.datasets.layouts.raw.Layout`), one file here and one line
in :data:`vesalius.datasets.LAYOUTS`. Its ``write_example`` writes a small raw tree with the quirks of the real thing,
so that it passes the contract suite of :mod:`vesalius.platform.testing.layouts` by existing.
"""
