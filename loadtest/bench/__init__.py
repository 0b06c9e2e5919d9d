"""What loadtest/p1 is made of. Nothing but Python's standard library."""
