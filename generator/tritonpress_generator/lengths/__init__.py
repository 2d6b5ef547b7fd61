"""How requests of different lengths share the engine; one file an alternative."""
