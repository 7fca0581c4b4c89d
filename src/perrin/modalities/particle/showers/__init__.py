"""Electromagnetic showers in a sampling calorimeter with cylindrical voxels: files, metrics and model."""
