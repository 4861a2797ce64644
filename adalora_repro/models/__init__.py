"""Backbones: where they come from, which of their matrices play which role, and how modules are replaced."""
