"""One runnable file per paper: its claim, the smallest honest experiment, and what came out."""
