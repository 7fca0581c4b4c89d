"""The detector of CaloChallenge's data set 2: 45 layers, each of 16 angles by 9 radii.

A shower is 6,480 energies in MeV, layer by layer, in each angle by angle, radii running fastest. Radial bins are 4.65 mm
wide; angles run from −π in sixteenths of a turn. Energies are visible ones divided by the sampling fraction 0.033, and
those below 15.15 keV (0.5 keV / 0.033) are cut.

Reference: CaloChallenge, arXiv:2410.21611; Giannelli et al., doi:10.5281/zenodo.6366271.
"""

from __future__ import annotations

import math

import numpy as np

LAYERS, ANGLES, RADII = 45, 16, 9
VOXELS = LAYERS * ANGLES * RADII
CUT = 0.5e-3 / 0.033
"""MeV; a voxel with less is empty."""
RADIAL_BIN = 4.65
"""mm."""

RADIUS = np.tile(RADIAL_BIN * (np.arange(RADII) + 0.5), ANGLES)
"""Distance of each voxel of a layer from the axis, `[144]`, mm."""
ANGLE = np.repeat(-math.pi + 2 * math.pi * (np.arange(ANGLES) + 0.5) / ANGLES, RADII)
"""Angle of each voxel of a layer, `[144]`, radians."""
ETA, PHI = RADIUS * np.cos(ANGLE), RADIUS * np.sin(ANGLE)
"""The two directions across, `[144]`, mm, in CaloChallenge's words."""
