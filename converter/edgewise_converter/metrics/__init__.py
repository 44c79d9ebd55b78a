"""How good a converted model is, with labels or against its float source. Pure, NumPy alone."""
