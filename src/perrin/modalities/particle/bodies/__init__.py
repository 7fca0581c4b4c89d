"""Simulators of many bodies: gravity on a mesh, a plasma of one dimension, and molecular dynamics through ASE."""
