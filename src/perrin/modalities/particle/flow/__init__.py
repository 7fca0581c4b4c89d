"""Two-dimensional flows: an own spectral Navier–Stokes solver, and a conditional model of the next state."""
