"""Figures, one module each: the paper's, and others."""
