"""Many cases at once: the run that segments them, and what it leaves behind for the people who look at them."""
