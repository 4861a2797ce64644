"""The paper's tables, one module each, and the numbers that the paper reports (paper/*.csv)."""
