"""Whole states, workflows with their steps: how they are loaded and saved, those of today and those of the past."""
