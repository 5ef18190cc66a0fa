"""Object stores behind one small contract, and the create-only primitive that carries safety."""
