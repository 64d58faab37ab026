"""Heads: hidden @ weight.T followed by a row function, the logits never stored."""
