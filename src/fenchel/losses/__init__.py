"""Losses: functions of logits, one number per row, one file per family."""
