"""How fast it is: cases on random data against the machine's ceilings and against a peer, in the same run."""
